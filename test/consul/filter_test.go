package consul

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-bexpr"
)

// Our filters and HashiCorp's agree, also on which are wrong.
func TestFiltersAgree(t *testing.T) {
	client, address := newClient(t)
	must(t, client.Agent().ServiceRegister(&api.AgentServiceRegistration{
		ID: "web-1", Name: "web", Port: 80, Address: "10.0.0.1", Tags: []string{"a", "b"},
		Meta: map[string]string{"version": "2", "a.b": "c", "empty": ""}, EnableTagOverride: true,
		TaggedAddresses: map[string]api.ServiceAddress{"lan": {Address: "10.0.0.2", Port: 81}},
		Check:           &api.AgentServiceCheck{TTL: "1h", Status: "warning"},
	}))
	entries, _, err := client.Health().Service("web", "", false, nil)
	must(t, err)
	for _, text := range []string{
		`Service.Meta.version == 2`, `Service.Meta.version != "2"`, `Service.Meta["a.b"] == c`, `Service.Meta.none == x`,
		`Service.Meta.none != x`, `version in Service.Meta`, `"none" not in Service.Meta`, `Service.Meta is not empty`,
		`"a" in Service.Tags`, `c in Service.Tags`, `c not in Service.Tags`, `Service.Tags contains b`,
		`Service.Tags is empty`, `Service.Tags is not empty`, `Service.Port == 80`, `Service.Port != 80`,
		`Service.EnableTagOverride == true`, `Service.ID matches "^web-[0-9]$"`, `Service.ID not matches "^web"`,
		`"eb" in Service.ID`, `Service.ID contains zz`, `Service.TaggedAddresses.lan.Port == 81`, `Node.Node == "server-1"`,
		`Node.Datacenter == dc1 and Service.Port == 80`, `Service.Port == 1 or Service.Port == 80`,
		`not Service.Port == 80`, `not (Service.Port == 80 and Node.Datacenter == dc2)`, `(Service.Port==80)`,
		`Service.Port == 1 and Service.Port == 2 or Service.Port == 80`,
		`Checks is empty`, "Service.ID == `web-1`",
		// wrong ones
		`Service.Prot == 80`, `Service.Port == eighty`, `Service.Port = 80`, `Service.Port`, `(Service.Port == 80`,
		`Service.ID matches "("`, `Service.Port is empty`, `Service.Port in`, `and`, `Service.Port == 80 or`,
	} {
		want, theirs := bexprMatches(text, entries[0])
		got, ours := weMatch(t, address, text)
		switch {
		case (ours == nil) != (theirs == nil):
			t.Errorf("%s: ours %v, theirs %v", text, ours, theirs)
		case got != want:
			t.Errorf("%s: we say %v, they %v", text, got, want)
		}
	}
}

// What we take besides: bare words with more than letters, and lists of records.
func TestFiltersTakeMore(t *testing.T) {
	client, address := newClient(t)
	must(t, client.Agent().ServiceRegister(&api.AgentServiceRegistration{
		Name: "web", Address: "10.0.0.1", Check: &api.AgentServiceCheck{TTL: "1h", Status: "warning"},
	}))
	for text, want := range map[string]bool{
		`Node.Node == server-1`: true, `Service.Address == 10.0.0.1`: true, `Service.Address == 10.0.0.2`: false,
		`Checks.Status == warning`: true, `Checks.Status == critical`: false,
	} {
		if got, err := weMatch(t, address, text); err != nil || got != want {
			t.Errorf("%s: %v %v", text, got, err)
		}
	}
}

func bexprMatches(text string, entry *api.ServiceEntry) (bool, error) {
	eval, err := bexpr.CreateEvaluator(text)
	if err != nil {
		return false, err
	}
	return eval.Evaluate(entry)
}

func weMatch(t *testing.T, address, text string) (bool, error) {
	t.Helper()
	resp, err := http.Get("http://" + address + "/v1/health/service/web?filter=" + url.QueryEscape(text))
	must(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must(t, err)
	if resp.StatusCode == http.StatusBadRequest && strings.HasPrefix(string(body), "Failed to create boolean expression evaluator") {
		return false, errors.New(string(body))
	}
	var list []api.ServiceEntry
	must(t, json.Unmarshal(body, &list))
	return len(list) == 1, nil
}
