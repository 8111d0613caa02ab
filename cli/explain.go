package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
)

func (a *app) explain() *cobra.Command {
	var r client.ExplainRequest
	cmd := &cobra.Command{
		Use:   "explain {METHOD URL | tcp://HOST:PORT | tls://NAME[:PORT]}",
		Short: "Say where a request would go, and which rule and file decide it",
		Long: `Say where a request would go and why, without sending it: the rule that fits
with its file and line, the rules before it that do not and why, every
destination with its share of the traffic and its healthy endpoints, timeouts,
retries and limits with where they are set, and whether the destination lets the
caller in.

The answer comes from the code that the proxies run, on the configuration that
they are sent.

A whole connection has no method: tcp://database:5432 asks about one that carries
bytes, tls://vault.example.com about one whose TLS is the application's own.

The caller is --from: a service, or a gateway. A URL that leads to a gateway that
is connected is asked as that gateway's client would ask it.`,
		Example: `  weft explain GET http://order-service/api/orders/1
  weft explain GET http://inventory-service/api/inventory/42 --from user-service
  weft explain GET http://localhost:8080/api/orders/1 -H 'x-beta: yes'
  weft explain tcp://database:5432 --from order-service`,
		Args:              wantArgs(1, 2, "METHOD and URL"),
		ValidArgsFunction: a.completeRequest,
	}
	cmd.Flags().StringVar(&r.From, "from", "", "`caller`: a service (\"user-service\", \"user-service.shop\") or a gateway")
	cmd.Flags().StringArrayVarP(&r.Headers, "header", "H", nil, "request header `'name: value'`; may be repeated")
	// It fails only for a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc("from", a.ask(a.completeServices))
	out := formatFlag(cmd, "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r.URL = args[len(args)-1]
		if len(args) == 2 {
			r.Method = strings.ToUpper(args[0])
		}
		raw, err := checkRequest(&r)
		if err != nil {
			return err
		}
		e, err := a.client().Explain(cmd.Context(), r)
		if err != nil {
			return err
		}
		if out.value == "json" {
			return printJSON(a.out, e)
		}
		x := explainer{app: a, raw: raw}
		if raw {
			x.line("", "connection", r.URL)
		} else {
			x.line("", "request", e.Method+" "+e.Scheme+"://"+e.Host+pathOf(e))
		}
		return x.print(e)
	}
	return cmd
}

// checkRequest finds what is wrong before a server is asked. raw says that it is
// about a connection and not a request.
func checkRequest(r *client.ExplainRequest) (raw bool, err error) {
	u, err := url.Parse(r.URL)
	if err != nil || u.Host == "" || !slices.Contains([]string{"http", "https", "tcp", "tls"}, u.Scheme) {
		return false, usagef("%q is no URL; want one such as http://order-service/api/orders/1", r.URL)
	}
	raw = u.Scheme == "tcp" || u.Scheme == "tls"
	switch {
	case !raw && r.Method == "":
		return false, usagef("want METHOD and URL, as in GET %s", r.URL)
	case raw && (r.Method != "" || len(r.Headers) > 0):
		return false, usagef("%s is about a connection: it has no method and no headers", r.URL)
	case raw && strings.Trim(u.Path, "/")+u.RawQuery != "":
		return false, usagef("%s is about a connection: want only %s://%s", r.URL, u.Scheme, u.Host)
	case u.Scheme == "tcp" && u.Port() == "":
		return false, usagef("%s has no port; want one such as tcp://database:5432", r.URL)
	}
	for _, h := range r.Headers {
		if name, _, ok := strings.Cut(h, ":"); !ok || strings.TrimSpace(name) == "" {
			return false, usagef("header %q: want 'name: value'", h)
		}
	}
	return raw, nil
}

// explainer prints an explanation.
type explainer struct {
	*app
	raw bool // of a connection
}

// line writes a label and a value, unless the value is empty.
func (x explainer) line(indent, label, value string) {
	if value != "" {
		fmt.Fprintf(x.out, "%s%-*s %s\n", indent, 15-len(indent), label, printable(value))
	}
}

func pathOf(e *client.Explanation) string {
	if e.Query == "" {
		return e.Path
	}
	return e.Path + "?" + e.Query
}

func (x explainer) print(e *client.Explanation) error {
	x.line("", "from", caller(e))
	if e.Edge != nil {
		x.rule(e.Edge)
	}
	for i := range e.Routes {
		if err := x.route(e, &e.Routes[i]); err != nil {
			return err
		}
	}
	return nil
}

func caller(e *client.Explanation) string {
	switch {
	case e.Gateway != "" && e.From != "":
		return "a client of gateway " + e.Gateway + ", which calls on as " + string(e.From)
	case e.Gateway != "":
		return "a client of gateway " + e.Gateway
	case e.From != "":
		return string(e.From)
	}
	return "a caller without identity in namespace " + e.Namespace
}

func (x explainer) route(e *client.Explanation, r *client.Route) error {
	if e.Edge != nil {
		fmt.Fprintln(x.out)
		x.line("", "then", percent(r.Share)+" by the rules of "+r.Table)
	} else {
		x.line("", "rules of", r.Table)
	}
	for _, p := range r.Passed {
		x.line("", "passed over", ruleName(p.Name, p.Source)+": "+p.Why)
	}
	if r.Rule != nil {
		x.rule(r.Rule)
	}
	x.line("", "problem", r.Problem)
	for i := range r.Destinations {
		fmt.Fprintln(x.out)
		if err := x.destination(&r.Destinations[i]); err != nil {
			return err
		}
	}
	return nil
}

func (x explainer) rule(r *client.Rule) {
	x.line("", "rule", ruleName(r.Name, r.Source))
	x.line("", "match", r.Match)
	if r.Redirect != nil {
		x.line("", "answer", fmt.Sprintf("redirect %d to %s", r.Redirect.Code, r.Redirect.Location))
		return
	}
	if r.Direct != nil {
		x.line("", "answer", strings.TrimSpace(fmt.Sprintf("%d %s", r.Direct.Status, r.Direct.Body)))
		return
	}
	if r.Rewrite != nil {
		var parts []string
		if r.Rewrite.Path != "" {
			parts = append(parts, "path to "+r.Rewrite.Path)
		}
		if r.Rewrite.Authority != "" {
			parts = append(parts, "host to "+r.Rewrite.Authority)
		}
		x.line("", "rewrite", strings.Join(parts, ", "))
	}
	if x.raw {
		return
	}
	x.line("", "timeout", orNone(r.Timeout))
	x.line("", "retry", retry(&r.Retry))
}

func ruleName(name string, source weft.SourceRef) string {
	if source.Kind == "" {
		return "built in (" + name + ")"
	}
	return source.String() + " " + name
}

func orNone(d weft.Duration) string {
	if d == 0 {
		return "none"
	}
	return d.String()
}

func retry(r *client.Retry) string {
	if r.Attempts == 0 {
		return "none"
	}
	on := append([]string{}, r.On...)
	for _, s := range r.Statuses {
		on = append(on, number(s))
	}
	out := fmt.Sprintf("up to %d on %s", r.Attempts, strings.Join(on, ", "))
	if r.PerTryTimeout > 0 {
		out += ", each try at most " + r.PerTryTimeout.String()
	}
	return out
}

func (x explainer) destination(d *client.Destination) error {
	name := weft.ServiceName{Namespace: d.Namespace, Name: d.Service}.String()
	if d.Subset != "" {
		name += " subset " + d.Subset
	}
	fmt.Fprintf(x.out, "%s to %s (weight %d)\n", percent(d.Share), printable(name), d.Weight)
	x.line("  ", "problem", d.Problem)
	x.line("  ", "guarded", d.Guard)
	if p := d.Policy; p != nil {
		x.line("  ", "balancing", p.LoadBalancer)
		x.line("  ", "limits", limits(p))
		x.line("  ", "ejection", ejection(p.Outlier))
		if x.raw && p.ProxyProtocol > 0 {
			x.line("  ", "PROXY header", "version "+number(int(p.ProxyProtocol))+", to endpoints without identity")
		}
		if p.Source.Kind != "" {
			x.line("  ", "set by", p.Source.String())
		}
	}
	if d.Resilience != nil {
		x.resilience(d.Resilience)
	}
	for _, v := range d.Authorization {
		x.line("  ", "authorization", verdict(&v, len(d.Endpoints)))
	}
	if len(d.Endpoints) == 0 {
		return nil
	}
	t := newTable(x.out, "  ", "ENDPOINT", "ADDRESS", "VERSION", "ZONE", "IDENTITY")
	for _, e := range d.Endpoints {
		identity := string(e.Identity)
		if identity == "" {
			identity = "none: plain text"
		}
		t.row("  ", e.ID, e.Address, e.Version, e.Zone, identity)
	}
	return t.flush()
}

// resilience prints the policy with a line for each of its parts, as it spells them.
func (x explainer) resilience(r *client.Resilience) {
	if r.Held != "" {
		x.line("  ", "circuit", "held "+r.Held)
	}
	if r.Source.Kind == "" {
		return
	}
	x.line("  ", "guarded by", r.Source.String()+", of the "+r.Of)
	for _, part := range fields(r.Spec) {
		var values []string
		for _, f := range part.inner {
			values = append(values, f.name+" "+f.value)
		}
		x.line("    ", part.name, part.value+strings.Join(values, ", "))
	}
}

// field is a value of a JSON object, or, of an object in it, inner: its values by
// their dotted paths.
type field struct {
	name, value string
	inner       []field
}

// fields lists the values of a JSON object in their order. Lists stay as they are.
func fields(object json.RawMessage) (out []field) {
	d := json.NewDecoder(bytes.NewReader(object))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil
	}
	for d.More() {
		name, err := d.Token()
		var value json.RawMessage
		if err == nil {
			err = d.Decode(&value)
		}
		if err != nil {
			return out
		}
		f := field{name: fmt.Sprint(name)}
		for _, in := range fields(value) {
			if in.inner == nil {
				f.inner = append(f.inner, in)
			}
			for _, deep := range in.inner {
				f.inner = append(f.inner, field{name: in.name + "." + deep.name, value: deep.value})
			}
		}
		if f.inner == nil {
			f.value = string(value)
			var text string
			if json.Unmarshal(value, &text) == nil {
				f.value = text
			}
		}
		out = append(out, f)
	}
	return out
}

func limits(p *client.Policy) string {
	var parts []string
	for _, l := range []struct {
		n    uint32
		what string
	}{
		{p.MaxConnections, "connections"}, {p.MaxPendingRequests, "waiting requests"},
		{p.MaxRequests, "requests at once"}, {p.MaxRequestsPerConn, "requests a connection"},
	} {
		if l.n > 0 {
			parts = append(parts, number(l.n)+" "+l.what)
		}
	}
	if p.ConnectTimeout > 0 {
		parts = append(parts, "connect within "+p.ConnectTimeout.String())
	}
	return strings.Join(parts, ", ")
}

func ejection(o *client.Outlier) string {
	if o == nil {
		return ""
	}
	var after []string
	if o.Consecutive5xx > 0 {
		after = append(after, number(o.Consecutive5xx)+" 5xx in a row")
	}
	if o.ConsecutiveGateway > 0 {
		after = append(after, number(o.ConsecutiveGateway)+" gateway errors in a row")
	}
	if len(after) == 0 {
		return ""
	}
	return fmt.Sprintf("after %s, for %s and longer each time, at most %d %% of the endpoints",
		strings.Join(after, " or "), o.BaseEjection, o.MaxEjectionPercent)
}

func verdict(v *client.Verdict, endpoints int) string {
	word := "denied"
	if v.Allowed {
		word = "allowed"
	}
	out := word + ": " + v.Reason
	if len(v.Endpoints) == endpoints {
		return out
	}
	at := v.Endpoints
	more := ""
	if len(at) > 3 {
		more = fmt.Sprintf(" and %d more", len(at)-3)
		at = at[:3]
	}
	return out + " (at " + strings.Join(at, ", ") + more + ")"
}
