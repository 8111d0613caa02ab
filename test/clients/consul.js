// What applications do with the npm package consul. The argument is host:port.
'use strict';

const assert = require('assert');
const Consul = require('consul');
const { run, until } = require('./steps');

const [host, port] = process.argv[2].split(':');
const consul = new Consul({ host, port });

// follow starts a watch, and keeps what it emits.
const follow = (method, options) => {
  const seen = { changes: [], errors: [] };
  const watch = consul.watch({ method, options, backoffFactor: 10 });
  watch.on('change', (data) => seen.changes.push(data));
  watch.on('error', (error) => seen.errors.push(String(error)));
  seen.last = () => seen.changes[seen.changes.length - 1];
  seen.end = () => {
    watch.end();
    assert.deepStrictEqual(seen.errors, []);
  };
  return seen;
};

run({
  async 'status and members'() {
    assert.match(await consul.status.leader(), /^127\.0\.0\.1:\d+$/);
    assert.strictEqual((await consul.status.peers()).length, 1);
    const self = await consul.agent.self();
    const members = await consul.agent.members();
    assert.strictEqual(members[0].Name, self.Config.NodeName);
    assert.deepStrictEqual(await consul.catalog.datacenters(), [self.Config.Datacenter]);
  },

  async 'services of the agent'() {
    await consul.agent.service.register({
      name: 'web', id: 'web:1/a', address: '10.0.0.1', port: 8080, tags: ['blue'], meta: { version: '2' },
      check: { ttl: '1h', notes: 'a note', status: 'passing', deregistercriticalserviceafter: '1h' },
    });
    const service = (await consul.agent.service.list())['web:1/a'];
    assert.deepStrictEqual([service.Service, service.Port, service.Tags, service.Meta], ['web', 8080, ['blue'], { version: '2' }]);
    assert.strictEqual((await consul.agent.checks())['service:web:1/a'].Notes, 'a note');
    await consul.agent.check.warn({ id: 'service:web:1/a', note: 'slow' });
    const checks = await consul.health.checks('web');
    assert.deepStrictEqual([checks[0].Status, checks[0].Output], ['warning', 'slow']);
    await consul.agent.check.pass('service:web:1/a');
    await consul.agent.service.maintenance({ id: 'web:1/a', enable: true, reason: 'repair' });
    assert.strictEqual((await consul.health.service({ service: 'web', passing: true })).length, 0);
    await consul.agent.service.maintenance({ id: 'web:1/a', enable: false });
    assert.strictEqual((await consul.health.service({ service: 'web', passing: true, tag: 'blue' })).length, 1);
    assert.strictEqual((await consul.health.service({ service: 'web', filter: 'Service.Meta.version == 1' })).length, 0);
    await assert.rejects(consul.agent.check.pass('unknown'), /Unknown check ID|unknown/i);
  },

  async 'checks of the agent'() {
    await consul.agent.check.register({ name: 'disk', ttl: '1h', notes: 'of the node' });
    assert.strictEqual((await consul.agent.check.list()).disk.Status, 'critical');
    await consul.agent.check.fail({ id: 'disk', note: 'full' });
    assert.ok((await consul.health.state('critical')).some((c) => c.CheckID === 'disk' && c.Output === 'full'));
    await consul.agent.check.deregister('disk');
    assert.strictEqual((await consul.agent.check.list()).disk, undefined);
    await consul.agent.maintenance({ enable: true, reason: 'node' });
    assert.strictEqual((await consul.health.service({ service: 'web', passing: true })).length, 0);
    await consul.agent.maintenance({ enable: false });
  },

  async 'catalog'() {
    await consul.catalog.register({
      node: 'far', address: '10.2.0.1', nodemeta: { rack: 'r1' },
      service: { service: 'db', id: 'db-1', port: 5432, tags: ['primary'] },
      check: { node: 'far', checkid: 'db', name: 'db', serviceid: 'db-1', status: 'passing' },
    });
    assert.deepStrictEqual((await consul.catalog.service.list()).db, ['primary']);
    const [node] = await consul.catalog.service.nodes('db');
    assert.deepStrictEqual([node.Node, node.Address, node.ServicePort, node.NodeMeta.rack], ['far', '10.2.0.1', 5432, 'r1']);
    assert.ok((await consul.catalog.node.list()).some((n) => n.Node === 'far'));
    assert.strictEqual((await consul.catalog.node.services('far')).Services['db-1'].Port, 5432);
    assert.strictEqual((await consul.health.node('far'))[0].CheckID, 'db');
    await consul.catalog.deregister({ node: 'far' });
    assert.deepStrictEqual(await consul.catalog.service.nodes('db'), []);
  },

  async 'keys'() {
    assert.strictEqual(await consul.kv.set('app/a b/ü', 'one'), true);
    assert.strictEqual((await consul.kv.get('app/a b/ü')).Value, 'one');
    assert.deepStrictEqual((await consul.kv.get({ key: 'app/a b/ü', buffer: true })).Value, Buffer.from('one'));
    assert.deepStrictEqual(await consul.kv.get({ key: 'app/a b/ü', raw: true }), Buffer.from('one'));
    assert.strictEqual(await consul.kv.get('absent'), undefined);
    await consul.kv.set({ key: 'app/c', value: Buffer.from([0, 255]), flags: 7 });
    assert.strictEqual((await consul.kv.get('app/c')).Flags, 7);
    assert.deepStrictEqual(await consul.kv.keys('app'), ['app/a b/ü', 'app/c']);
    assert.deepStrictEqual(await consul.kv.keys({ key: 'app/', separator: '/' }), ['app/a b/', 'app/c']);
    assert.strictEqual((await consul.kv.get({ key: 'app', recurse: true })).length, 2);
    assert.strictEqual(await consul.kv.set({ key: 'app/c', value: 'x', cas: '1' }), undefined); // so it gives back "false"
    const { ModifyIndex } = await consul.kv.get('app/c');
    assert.strictEqual(await consul.kv.set({ key: 'app/c', value: 'x', cas: ModifyIndex }), true);
    await consul.kv.set('app/empty', '');
    assert.strictEqual((await consul.kv.get('app/empty')).Value, null);
    await consul.kv.del({ key: 'app', recurse: true });
    await assert.rejects(consul.kv.keys('app'), /not found/);
  },

  async 'transactions'() {
    const value = Buffer.from('v').toString('base64');
    const done = await consul.transaction.create([
      { KV: { Verb: 'set', Key: 't/1', Value: value } }, { KV: { Verb: 'set', Key: 't/2', Value: value, Flags: 3 } }, { KV: { Verb: 'get', Key: 't/1' } },
    ]);
    assert.strictEqual(done.Results.length, 3);
    assert.strictEqual(done.Results[2].KV.Value, value);
    await assert.rejects(consul.transaction.create([
      { KV: { Verb: 'set', Key: 't/3', Value: value } }, { KV: { Verb: 'check-not-exists', Key: 't/1' } },
    ]), (error) => error.statusCode === 409 || /409|conflict/i.test(String(error)));
    assert.strictEqual(await consul.kv.get('t/3'), undefined);
  },

  async 'sessions'() {
    const { ID } = await consul.session.create({ name: 'lock', ttl: '10s', lockdelay: '0s', behavior: 'delete' });
    const [info] = [].concat(await consul.session.get(ID));
    assert.deepStrictEqual([info.Name, info.TTL, info.Behavior], ['lock', '10s', 'delete']);
    assert.strictEqual((await consul.session.renew(ID))[0].ID, ID);
    assert.ok((await consul.session.list()).some((s) => s.ID === ID));
    assert.strictEqual((await consul.session.node(info.Node)).length, 1);
    assert.strictEqual(await consul.kv.set({ key: 'lock', value: 'me', acquire: ID }), true);
    const other = await consul.session.create();
    assert.strictEqual(await consul.kv.set({ key: 'lock', value: 'you', acquire: other.ID }), undefined); // so it gives back "false"
    assert.strictEqual((await consul.kv.get('lock')).Session, ID);
    const watch = follow(consul.kv.get, { key: 'lock' });
    await until('the lock is seen', () => watch.changes.length === 1);
    await consul.session.destroy(ID);
    await until('the lock is gone with its session', () => watch.changes.length === 2 && watch.last() === undefined);
    watch.end();
    await assert.rejects(consul.session.renew(ID), /not found/);
    await consul.session.destroy(other.ID);
  },

  async 'events'() {
    const watch = follow(consul.event.list, { name: 'deploy' });
    await until('the watch', () => watch.changes.length > 0);
    const event = await consul.event.fire({ name: 'deploy', payload: 'version 2' });
    assert.strictEqual(event.Payload, 'version 2');
    assert.strictEqual((await consul.event.list('deploy'))[0].Payload, 'version 2');
    await until('the event', () => watch.last().some((e) => e.ID === event.ID));
    watch.end();
  },

  async 'prepared queries'() {
    const { ID } = await consul.query.create({ name: 'near', service: { service: 'web', onlypassing: true } });
    assert.strictEqual((await consul.query.execute('near')).Nodes.length, 1);
    assert.strictEqual((await consul.query.get(ID)).Name, 'near');
    await consul.query.explain({ query: 'near' });
    await consul.query.update({ query: ID, name: 'near', service: { service: 'nothing' } });
    assert.strictEqual((await consul.query.execute(ID)).Nodes.length, 0);
    await consul.query.destroy(ID);
    assert.strictEqual((await consul.query.list()).length, 0);
  },

  // Watches see each change, in order, and nothing twice; they wait in between.
  async 'watches'() {
    const service = follow(consul.health.service, { service: 'watched', passing: true });
    const services = follow(consul.catalog.service.list, {});
    const keys = follow(consul.kv.get, { key: 'watched/', recurse: true });
    const idle = follow(consul.health.service, { service: 'nobody' });
    await until('first answers', () => [service, services, keys, idle].every((w) => w.changes.length === 1));
    for (let i = 1; i <= 5; i++) {
      await consul.agent.service.register({ name: 'watched', id: `watched-${i}`, port: i });
      await until(`instance ${i}`, () => service.last().length === i);
      await consul.kv.set(`watched/${i}`, 'x');
      await until(`key ${i}`, () => keys.last() && keys.last().length === i);
    }
    await until('its name', () => 'watched' in services.last());
    assert.strictEqual(services.changes.length, 2);
    assert.strictEqual(service.changes.length, 6);
    assert.strictEqual(idle.changes.length, 1);
    for (let i = 5; i >= 1; i--) await consul.agent.service.deregister(`watched-${i}`);
    await until('nobody is left', () => service.last().length === 0);
    await until('the name is gone', () => !('watched' in services.last()));
    [service, services, keys, idle].forEach((w) => w.end());
  },

  // A watch with a short wait comes back in time, with no error, and tells nothing.
  async 'a wait that ends'() {
    const begin = Date.now();
    const watch = follow(consul.health.service, { service: 'web', wait: '300ms' });
    await until('four waits', () => Date.now() - begin > 1300);
    assert.strictEqual(watch.changes.length, 1);
    watch.end();
  },

  async 'wrong parameters'() {
    await assert.rejects(consul.catalog.service.nodes({ service: 'web', dc: 'elsewhere' }), /No path to datacenter|datacenter/);
    await assert.rejects(consul.health.service({ service: 'web', filter: 'Service.Nothing ==' }), /filter/);
    await assert.rejects(consul.agent.service.register({ name: 'x', check: { http: 'http://127.0.0.1/', interval: 'soon' } }), /interval|duration|Interval/);
  },
});
