"""What applications do with python-consul. The arguments are host and port. Each step
writes a line of JSON, its name and what was wrong; python_test.go reads them."""
import json
import sys
import threading
import time
import traceback

import consul
from consul.base import CB

c = consul.Consul(host=sys.argv[1], port=int(sys.argv[2]))


def equal(got, want):
    assert got == want, f"got {got!r}, want {want!r}"


def until(what, holds):
    end = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < end, "not in 5 s: " + what
        time.sleep(0.01)


def agent(path, **params):
    """A write of the agent: this version of the client makes a GET of some, which Consul
    refuses since 1.0 as weft does."""
    return c.http.put(CB.bool(), "/v1/agent/" + path, params=params)


def keys():
    equal(c.kv.get("absent")[1], None)
    assert c.kv.put("a/b", "value", flags=3)
    index, data = c.kv.get("a/b")
    equal((data["Value"], data["Flags"], data["Key"]), (b"value", 3, "a/b"))
    equal(c.kv.put("a/b", "no", cas=1), False)
    assert c.kv.put("a/b", "yes", cas=data["ModifyIndex"])
    c.kv.put("a/empty", "")
    c.kv.put("a/sub/x", b"\x00\xff")
    equal(c.kv.get("a/", keys=True)[1], ["a/b", "a/empty", "a/sub/x"])
    equal(c.kv.get("a/", keys=True, separator="/")[1], ["a/b", "a/empty", "a/sub/"])
    equal([k["Value"] for k in c.kv.get("a/", recurse=True)[1]], [b"yes", None, b"\x00\xff"])
    later = threading.Timer(0.2, c.kv.put, ("a/b", "later"))
    index, data = c.kv.get("a/b")
    later.start()
    begin = time.monotonic()
    index, data = c.kv.get("a/b", index=index, wait="10s")
    equal(data["Value"], b"later")
    assert 0.15 < time.monotonic() - begin < 5, "the blocked query took %s s" % (time.monotonic() - begin)
    later.join()
    assert c.kv.delete("a/", recurse=True)
    equal(c.kv.get("a/", recurse=True)[1], None)


def services():
    assert c.agent.service.register("web", service_id="web-1", address="10.0.0.1", port=80, tags=["blue"],
                                    check=consul.Check.ttl("1h"))
    equal(c.health.service("web", passing=True)[1], [])
    assert agent("check/pass/service:web-1", note="fine")
    (entry,) = c.health.service("web", passing=True, tag="blue")[1]
    equal((entry["Service"]["Address"], entry["Service"]["Port"]), ("10.0.0.1", 80))
    assert agent("check/warn/service:web-1", note="slow")
    equal(c.health.checks("web")[1][0]["Output"], "slow")
    assert agent("check/fail/service:web-1")
    assert "service:web-1" in [k["CheckID"] for k in c.health.state("critical")[1]]
    assert c.agent.service.maintenance("web-1", "true", "repair")
    assert "_service_maintenance:web-1" in c.agent.checks()
    assert c.agent.service.maintenance("web-1", "false")
    equal(c.agent.services()["web-1"]["Tags"], ["blue"])
    assert agent("service/deregister/web-1")
    equal(c.health.service("web")[1], [])
    equal(agent("check/pass/absent"), False)
    equal(c.agent.check.ttl_pass("absent"), False)  # by GET


def catalog():
    assert c.catalog.register("far", "10.2.0.1", service={"Service": "db", "ID": "db-1", "Port": 5432, "Tags": ["primary"]},
                              check={"Name": "db", "CheckID": "db", "ServiceID": "db-1", "Status": "passing"})
    equal(c.catalog.services()[1]["db"], ["primary"])
    (node,) = c.catalog.service("db", tag="primary")[1]
    equal((node["Node"], node["Address"], node["ServicePort"]), ("far", "10.2.0.1", 5432))
    equal(c.catalog.node("far")[1]["Services"]["db-1"]["Service"], "db")
    equal(c.catalog.node("absent")[1], None)
    assert "far" in [n["Node"] for n in c.catalog.nodes()[1]]
    equal(c.catalog.datacenters(), ["dc1"])
    assert c.catalog.deregister("far")
    equal(c.catalog.service("db")[1], [])


def sessions():
    one = c.session.create("one", ttl=10, lock_delay=0, behavior="delete")
    two = c.session.create("two", ttl=10, lock_delay=0)
    equal(c.session.info(one)[1]["Name"], "one")
    equal(c.session.renew(one)["ID"], one)
    assert c.kv.put("lock", "one", acquire=one)
    equal(c.kv.put("lock", "two", acquire=two), False)
    equal(c.kv.get("lock")[1]["Session"], one)
    assert c.session.destroy(one)
    equal(c.kv.get("lock")[1], None)
    assert c.kv.put("lock", "two", acquire=two)
    assert c.kv.put("lock", "two", release=two)
    assert "Session" not in c.kv.get("lock")[1]
    try:
        c.session.renew(one)
    except consul.NotFound:
        pass
    else:
        raise AssertionError("a session that is over was renewed")
    c.session.destroy(two)
    equal(c.session.list()[1], [])


def events():
    fired = c.event.fire("deploy", "version 2")
    until("the event", lambda: [e for e in c.event.list("deploy")[1] if e["ID"] == fired["ID"] and e["Payload"] == b"version 2"])


def queries():
    c.agent.service.register("api", port=90)
    made = c.query.create("api", name="nearest", onlypassing=True)
    equal(len(c.query.execute("nearest")["Nodes"]), 1)
    assert c.query.update(made["ID"], name="nearest", service="absent")
    equal(c.query.execute(made["ID"])["Nodes"], [])
    assert c.query.delete(made["ID"])
    equal(c.query.list(), [])
    agent("service/deregister/api")


def server():
    equal(c.agent.self()["Config"]["Datacenter"], "dc1")
    equal(c.agent.members()[0]["Name"], c.agent.self()["Member"]["Name"])
    assert c.status.leader() in c.status.peers()
    assert c.operator.raft_config()["Servers"][0]["Leader"]


for step in (keys, services, catalog, sessions, events, queries, server):
    wrong = ""
    try:
        step()
    except Exception:
        wrong = traceback.format_exc()
    print(json.dumps({"name": step.__name__, "error": wrong}), flush=True)
