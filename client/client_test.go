package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/weftmesh/weft"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve answers every request by answer, and tells what was asked.
func serve(t *testing.T, status int, answer string) (*Client, *asked) {
	t.Helper()
	var a asked
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		a = asked{r.Method + " " + r.URL.RequestURI(), string(body)}
		w.WriteHeader(status)
		io.WriteString(w, answer)
	}))
	t.Cleanup(s.Close)
	c := at(t, s.Listener.Addr().String())
	t.Cleanup(c.http.CloseIdleConnections)
	return c, &a
}

// at is a client of the server at addr.
func at(t *testing.T, addr string) *Client {
	t.Helper()
	c, err := New(t.Context(), At(addr))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

type asked struct{ line, body string }

func TestEachMethodCallsItsPath(t *testing.T) {
	ctx := t.Context()
	tests := []struct {
		call   func(c *Client) error
		answer string
		want   asked
	}{
		{func(c *Client) error { _, err := c.Services(ctx, ""); return err }, "[]",
			asked{"GET /api/services", ""}},
		{func(c *Client) error { _, err := c.Services(ctx, "shop"); return err }, "[]",
			asked{"GET /api/services?namespace=shop", ""}},
		{func(c *Client) error {
			_, err := c.Instances(ctx, weft.ServiceName{Namespace: "shop", Name: "a/b"})
			return err
		}, "[]", asked{"GET /api/services/a%2Fb/instances?namespace=shop", ""}},
		{func(c *Client) error { _, err := c.Kinds(ctx); return err }, "[]",
			asked{"GET /api/kinds", ""}},
		{func(c *Client) error { _, err := c.Resources(ctx, "A", "B"); return err }, "[]",
			asked{"GET /api/resources?kind=A&kind=B", ""}},
		{func(c *Client) error { _, err := c.Resource(ctx, "VirtualService", "", "x"); return err }, "{}",
			asked{"GET /api/resources/VirtualService/default/x", ""}},
		{func(c *Client) error {
			_, err := c.Apply(ctx, []File{{"a.yaml", "kind: X"}}, ApplyOptions{Partial: true})
			return err
		}, "{}", asked{"POST /api/resources", `{"files":[{"name":"a.yaml","data":"kind: X"}],"partial":true}`}},
		{func(c *Client) error { return c.Delete(ctx, "VirtualService", "shop", "x") }, "",
			asked{"DELETE /api/resources/VirtualService/shop/x", ""}},
		{func(c *Client) error {
			_, err := c.Explain(ctx, ExplainRequest{Method: "GET", URL: "http://a/", From: "b"})
			return err
		}, "{}", asked{"POST /api/explain", `{"method":"GET","url":"http://a/","from":"b"}`}},
		{func(c *Client) error {
			_, err := c.Traces(ctx, TraceQuery{Service: "a b", Since: 10 * time.Minute,
				MinDuration: time.Second, Errors: true, Limit: 3})
			return err
		}, "[]", asked{"GET /api/traces?errors=true&limit=3&minDuration=1s&service=a+b&since=10m0s", ""}},
		{func(c *Client) error { _, err := c.Trace(ctx, "ab"); return err }, "{}",
			asked{"GET /api/traces/ab", ""}},
		{func(c *Client) error { _, err := c.Status(ctx); return err }, "{}",
			asked{"GET /api/status", ""}},
	}
	for _, tt := range tests {
		c, got := serve(t, http.StatusOK, tt.answer)
		if err := tt.call(c); err != nil {
			t.Errorf("%s: %v", tt.want.line, err)
		}
		if *got != tt.want {
			t.Errorf("asked %+v, want %+v", *got, tt.want)
		}
	}
}

func TestAnswersAreDecoded(t *testing.T) {
	c, _ := serve(t, 200, `[{"id":"a","service":"s","namespace":"default","node":"n","address":"127.0.0.1:80","health":"warning","checks":[{"id":"c","status":"warning","interval":"10s"}],"later":1}]`)
	got, err := c.Instances(t.Context(), weft.NewServiceName("", "s"))
	if err != nil {
		t.Fatal(err)
	}
	want := []Instance{{ID: "a", Service: "s", Namespace: "default", Node: "n", Address: "127.0.0.1:80", Health: weft.Warning,
		Checks: []Check{{ID: "c", Status: weft.Warning, Interval: weft.Duration(10 * time.Second)}}}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestAFailureKeepsKindThingAndProblems(t *testing.T) {
	problems := weft.Problems{{Source: weft.SourceRef{File: "a.yaml", Line: 3, Field: "spec"}, Message: "unknown field", Mend: "remove it"}}
	tests := []struct {
		name     string
		err      error // at the server
		wantKind weft.Kind
		wantText string
		problems int
	}{
		{"not found", weft.Errorf(weft.NotFound, "delete", "VirtualService default/x", "it was never applied"),
			weft.NotFound, "delete VirtualService default/x: it was never applied", 0},
		{"bare problems", problems, weft.Invalid, "ask for status: a.yaml:3: spec: unknown field; remove it", 1},
		{"problems with a kind", &weft.Error{Kind: weft.Conflict, Op: "apply", Err: problems},
			weft.Conflict, "apply: a.yaml:3: spec: unknown field; remove it", 1},
		{"an error without a kind", errors.New("disk is full"), weft.Internal, "ask for status: disk is full", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			body, err := json.Marshal(NewFailure(tt.err))
			if err != nil {
				t.Fatal(err)
			}
			c, _ := serve(t, 500, string(body))
			_, err = c.Status(t.Context())
			if weft.KindOf(err) != tt.wantKind || err.Error() != tt.wantText {
				t.Errorf("got kind %d, %q; want kind %d, %q", weft.KindOf(err), err, tt.wantKind, tt.wantText)
			}
			var ps weft.Problems
			errors.As(err, &ps)
			if len(ps) != tt.problems {
				t.Errorf("%d problems, want %d", len(ps), tt.problems)
			}
		})
	}
}

func TestWhatIsNoWeftServerIsSaid(t *testing.T) {
	for _, tt := range []struct {
		status int
		body   string
	}{{404, "404 page not found"}, {502, "{}"}, {301, "moved"}, {200, "<html>"}} {
		c, _ := serve(t, tt.status, tt.body)
		_, err := c.Status(t.Context())
		if err == nil || !strings.Contains(err.Error(), "does not answer as a weft server does") {
			t.Errorf("status %d %q: %v", tt.status, tt.body, err)
		}
	}
}

func TestNoServerIsUnavailableWithTheSocketsError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	_, err = at(t, addr).Status(t.Context())
	if weft.KindOf(err) != weft.Unavailable || !errors.Is(err, syscall.ECONNREFUSED) || !strings.Contains(err.Error(), addr) {
		t.Errorf("got %v", err)
	}
}

func TestACancelledCallEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { cancel(); <-release }))
	defer s.Close()
	defer close(release)
	if _, err := at(t, s.URL).Status(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func TestAnEndlessAnswerIsCut(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		chunk := []byte(strings.Repeat(" ", 1<<20))
		for {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}))
	defer s.Close()
	if _, err := at(t, s.URL).Status(t.Context()); weft.KindOf(err) != weft.TooLarge {
		t.Errorf("got %v, want weft.TooLarge", err)
	}
}

func TestWhereTheServerIs(t *testing.T) {
	for _, tt := range []struct{ env, addr, want string }{
		{"", "", "127.0.0.1:7400"},
		{"10.0.0.1:1", "", "10.0.0.1:1"},
		{"10.0.0.1:1", "[::1]:2", "[::1]:2"},
		{"", "http://weft.example:7400/", "weft.example:7400"},
		{"", "https://weft.example", "https://weft.example"},
		{"10.0.0.1:1, 10.0.0.2:1", "", "10.0.0.1:1"},
	} {
		t.Setenv(AddrEnv, tt.env)
		if got := at(t, tt.addr).Addr(); got != tt.want {
			t.Errorf("env %q, addr %q: %q, want %q", tt.env, tt.addr, got, tt.want)
		}
	}
	for _, bad := range []string{"no such\naddress", "http://[::1", "::1:%", "127.0.0.1:1,,127.0.0.1:2"} {
		if _, err := New(t.Context(), At(bad)); weft.KindOf(err) != weft.Invalid {
			t.Errorf("address %q: %v, want weft.Invalid", bad, err)
		}
	}
}

func TestAServiceThatNobodyUsesIsForgotten(t *testing.T) {
	c, _ := serve(t, 200, `{"policy":"none","endpoints":[]}`)
	defer c.Close()
	s, err := c.named("resolve", "order-service")
	if err != nil {
		t.Fatal(err)
	}
	s.users.Add(1) // a loop of Watch
	if c.forget(s, time.Now().Add(2*idleWatch)) {
		t.Error("it is forgotten under a loop")
	}
	s.users.Add(-1)
	if c.forget(s, time.Now().Add(idleWatch/2)) {
		t.Error("it is forgotten too early")
	}
	if !c.forget(s, time.Now().Add(2*idleWatch)) || c.followed(s.name) {
		t.Error("it is still followed")
	}
}

// A program under a sidecar means the names of its own namespace.
func TestNamespaceOfTheSidecar(t *testing.T) {
	t.Setenv("WEFT_NAMESPACE", "shop")
	for want, options := range map[string][]Option{"shop": nil, "other": {In("other")}} {
		c, err := New(t.Context(), options...)
		if err != nil || c.namespace != want {
			t.Errorf("namespace %q, %v; want %q", c.namespace, err, want)
		}
	}
}
