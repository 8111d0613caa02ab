package eureka

import (
	"encoding/json"
	"encoding/xml"
	"runtime"
)

// statusAnswer is GET /status: of what Eureka's server tells there what has a meaning
// here, and which applications show instances as healthy that are not, and why.
type statusAnswer struct {
	XMLName xml.Name `json:"-" xml:"status"`
	General struct {
		Environment string `json:"environment" xml:"environment"`
		CPUs        int    `json:"num-of-cpus" xml:"num-of-cpus"`
		Uptime      string `json:"server-uptime" xml:"server-uptime"`
	} `json:"generalStats" xml:"generalStats"`
	Applications struct {
		Hash             string `json:"apps-hashcode" xml:"apps-hashcode"`
		Number           int    `json:"applications" xml:"applications"`
		SelfPreservation bool   `json:"self-preservation" xml:"self-preservation"`
	} `json:"applicationStats" xml:"applicationStats"`
	Healthy   bool           `json:"isHealthy" xml:"isHealthy"`
	Preserved []preservedApp `json:"selfPreservation" xml:"selfPreservation>application"`
}

type preservedApp struct {
	Name      string   `json:"name" xml:"name"`
	Leases    int      `json:"leases" xml:"leases"`
	Lapsed    int      `json:"lapsed" xml:"lapsed"`
	Reasons   []string `json:"reasons" xml:"reasons>reason"`
	Instances []string `json:"instances" xml:"instances>instanceId"`
}

// getStatus: GET /status
func (a *API) getStatus(c *call) error {
	p := a.view.current()
	var s statusAnswer
	s.General.Environment = a.registry.Datacenter()
	s.General.CPUs = runtime.GOMAXPROCS(0)
	s.General.Uptime = a.now().Sub(a.started).String()
	s.Applications.Hash = p.hash
	s.Healthy = true
	s.Preserved = []preservedApp{}
	for _, app := range p.apps {
		if len(app.rows) > 0 {
			s.Applications.Number++
		}
		reasons := app.reasons()
		if len(reasons) == 0 {
			continue
		}
		kept := preservedApp{Name: app.name, Leases: app.leases, Lapsed: app.lapsed, Reasons: reasons, Instances: []string{}}
		for _, w := range app.rows {
			if w.lapsed || app.keeps(w.in.Key()) {
				kept.Instances = append(kept.Instances, w.id)
			}
		}
		s.Preserved = append(s.Preserved, kept)
	}
	s.Applications.SelfPreservation = len(s.Preserved) > 0
	f := c.form()
	var b []byte
	var err error
	if f.json() {
		b, err = json.Marshal(&s)
	} else {
		b, err = xml.Marshal(&s)
	}
	if err != nil {
		return err
	}
	return c.give(f, newAnswer(b))
}

// getOverrides: GET /serverinfo/statusoverrides. It is JSON, whatever is accepted.
func (a *API) getOverrides(c *call) error {
	all := make(map[string]status)
	for _, app := range a.view.current().apps {
		for _, w := range app.rows {
			if w.overridden != unknown {
				all[w.id] = w.overridden
			}
		}
	}
	b, err := json.Marshal(all)
	if err != nil {
		return err
	}
	return c.give(jsonFull, newAnswer(b))
}
