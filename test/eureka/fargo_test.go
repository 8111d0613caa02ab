package eureka

import (
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hudl/fargo"
	"github.com/miekg/dns"
)

// A whole life, by a client that knows both forms, on both base paths.
func TestFargo(t *testing.T) {
	for _, base := range []string{"/eureka", "/eureka/v2"} {
		for form, json := range map[string]bool{"XML": false, "JSON": true} {
			t.Run(base+" "+form, func(t *testing.T) {
				w := newWorld(t)
				c := fargo.NewConn(w.eureka + base)
				c.UseJson = json
				w.life(&c)
			})
		}
	}
}

func (w *world) life(c *fargo.EurekaConnection) {
	t := w.T
	in := &fargo.Instance{
		InstanceId: "host-1:order:8080", HostName: "host-1", App: "ORDER-SERVICE", IPAddr: "10.0.0.1",
		VipAddress: "order-service", SecureVipAddress: "order-service", Status: fargo.UP,
		Port: 8080, PortEnabled: true, DataCenterInfo: fargo.DataCenterInfo{Name: fargo.MyOwn},
		LeaseInfo: fargo.LeaseInfo{RenewalIntervalInSecs: 1, DurationInSecs: 30},
	}
	in.SetMetadataString("zone", "b")
	must(t, c.RegisterInstance(in))
	must(t, c.HeartBeatInstance(in))

	app, err := c.GetApp("ORDER-SERVICE")
	must(t, err)
	if len(app.Instances) != 1 {
		t.Fatalf("%d instances, want 1", len(app.Instances))
	}
	got := app.Instances[0]
	zone, err := got.Metadata.GetString("zone")
	must(t, err)
	if got.IPAddr != "10.0.0.1" || got.Port != 8080 || !got.PortEnabled || got.SecurePortEnabled || got.Status != fargo.UP ||
		zone != "b" || got.LeaseInfo.DurationInSecs != 30 || got.DataCenterInfo.Name != fargo.MyOwn {
		t.Errorf("read back: %+v, zone %q", got, zone)
	}

	must(t, c.AddMetadataString(in, "colour", "blue"))
	must(t, c.UpdateInstanceStatus(in, fargo.OUTOFSERVICE))
	one, err := c.GetInstance("ORDER-SERVICE", "host-1:order:8080")
	must(t, err)
	if one.Status != fargo.OUTOFSERVICE || one.Overriddenstatus != fargo.OUTOFSERVICE {
		t.Errorf("out of service: %s, overridden %s", one.Status, one.Overriddenstatus)
	}
	if n := len(w.passing("order-service")); n != 0 {
		t.Errorf("Consul's clients see %d passing, want none", n)
	}
	must(t, c.UpdateInstanceStatus(in, fargo.UP))
	byVIP, err := c.GetInstancesByVIPAddress("order-service", false)
	must(t, err)
	if len(byVIP) != 1 || byVIP[0].Status != fargo.UP {
		t.Errorf("by VIP address: %+v", byVIP)
	}
	apps, err := c.GetApps()
	must(t, err)
	if len(apps) != 1 || apps["ORDER-SERVICE"] == nil {
		t.Errorf("all: %+v", apps)
	}

	must(t, c.DeregisterInstance(in))
	if err := c.HeartBeatInstance(in); err == nil {
		t.Error("a heartbeat of what is not registered was accepted")
	}
}

// What is registered in one dialect is there in all others.
func TestOneCatalogue(t *testing.T) {
	w := newWorld(t)
	c := fargo.NewConn(w.eureka + "/eureka/v2")
	must(t, c.RegisterInstance(&fargo.Instance{
		InstanceId: "order-1", HostName: "host-1", App: "ORDER-SERVICE", IPAddr: "10.0.0.1", VipAddress: "order-service",
		Status: fargo.UP, Port: 8080, PortEnabled: true, DataCenterInfo: fargo.DataCenterInfo{Name: fargo.MyOwn},
	}))
	must(t, w.consul.Agent().ServiceRegister(&api.AgentServiceRegistration{
		ID: "billing-1", Name: "billing", Address: "10.0.0.2", Port: 9090, Meta: map[string]string{"version": "v2"},
		Check: &api.AgentServiceCheck{TTL: "1h", Status: "passing"},
	}))

	list := w.passing("order-service")
	if len(list) != 1 || list[0].Service.ID != "order-1" || list[0].Service.Address != "10.0.0.1" || list[0].Service.Port != 8080 {
		t.Fatalf("Consul's clients see %+v", list)
	}
	if got := w.lookup("order-service.service.consul.", dns.TypeSRV); !slices.Equal(got, []string{"SRV 8080", "A 10.0.0.1"}) {
		t.Errorf("SRV: %v", got)
	}
	if got := w.lookup("order-service.default.svc.cluster.local.", dns.TypeA); !slices.Equal(got, []string{"A 10.0.0.1"}) {
		t.Errorf("A: %v", got)
	}

	app, err := c.GetApp("BILLING")
	must(t, err)
	got := app.Instances[0]
	version, err := got.Metadata.GetString("version")
	must(t, err)
	if got.IPAddr != "10.0.0.2" || got.Port != 9090 || got.VipAddress != "billing" || got.Status != fargo.UP || version != "v2" {
		t.Errorf("Eureka's clients see %+v, version %q", got, version)
	}

	must(t, w.consul.Agent().FailTTL("service:billing-1", "broken"))
	if app, err = c.GetApp("BILLING"); err != nil || app.Instances[0].Status != fargo.DOWN {
		t.Errorf("with a failing check: %+v, %v", app, err)
	}
	must(t, w.consul.Agent().UpdateTTL("service:billing-1", "", "passing"))
	must(t, w.consul.Agent().EnableServiceMaintenance("billing-1", "updates"))
	if app, err = c.GetApp("BILLING"); err != nil || app.Instances[0].Status != fargo.OUTOFSERVICE {
		t.Errorf("in maintenance: %+v, %v", app, err)
	}
	must(t, w.consul.Agent().DisableServiceMaintenance("billing-1"))
	must(t, w.consul.Agent().ServiceDeregister("billing-1"))
	if app, err = c.GetApp("BILLING"); err == nil {
		t.Errorf("deregistered: %+v", app)
	}
}

// A lease ends for everybody at the same time, when its client said.
func TestLeaseEndsEverywhere(t *testing.T) {
	w := newWorld(t)
	c := fargo.NewConn(w.eureka + "/eureka")
	begin := time.Now()
	must(t, c.RegisterInstance(&fargo.Instance{
		InstanceId: "order-1", HostName: "host-1", App: "ORDER", IPAddr: "10.0.0.1", Status: fargo.UP, Port: 1, PortEnabled: true,
		DataCenterInfo: fargo.DataCenterInfo{Name: fargo.MyOwn}, LeaseInfo: fargo.LeaseInfo{DurationInSecs: 1},
	}))
	w.eventually("Consul's clients do not see it", func() bool { return len(w.passing("order")) == 0 })
	if took := time.Since(begin); took < time.Second {
		t.Errorf("the lease of a second ended after %s", took)
	}
	if got := w.lookup("order.service.consul.", dns.TypeA); len(got) != 0 {
		t.Errorf("DNS: %v", got)
	}
	if app, err := c.GetApp("ORDER"); err == nil {
		t.Errorf("Eureka: %+v", app.Instances[0])
	}
}
