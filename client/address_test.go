package client

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/weftmesh/weft"
)

// member is a server of a cluster that answers in one way.
func member(t *testing.T, h http.HandlerFunc) (addr string, asked *atomic.Int32) {
	t.Helper()
	asked = new(atomic.Int32)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		h(w, r)
	}))
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s.Listener.Addr().String(), asked
}

func well(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`[]`)) }

func noQuorum(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusServiceUnavailable)
	_, _ = w.Write([]byte(`{"kind":"unavailable","message":"no majority"}`))
}

func hangsUp(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// nobody is an address at which connections are refused.
func nobody(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func clientOf(t *testing.T, addrs ...string) *Client {
	t.Helper()
	c := at(t, strings.Join(addrs, ","))
	t.Cleanup(c.http.CloseIdleConnections)
	return c
}

func TestReadsGoToTheNextServer(t *testing.T) {
	for _, tt := range []struct {
		name  string
		first http.HandlerFunc // nil: nobody is there
	}{
		{"refused", nil},
		{"without a majority", noQuorum},
		{"cut off", hangsUp},
	} {
		t.Run(tt.name, func(t *testing.T) {
			first := nobody(t)
			if tt.first != nil {
				first, _ = member(t, tt.first)
			}
			second, asked := member(t, well)
			c := clientOf(t, first, second)
			for range 2 {
				if _, err := c.Services(t.Context(), ""); err != nil {
					t.Fatal(err)
				}
			}
			if asked.Load() != 2 || c.Addr() != second {
				t.Errorf("the second server was asked %d times, want 2; then %s is called", asked.Load(), c.Addr())
			}
		})
	}
}

func TestWhatMayBeDoneIsNotSentAgain(t *testing.T) {
	first, _ := member(t, hangsUp)
	second, asked := member(t, well)
	c := clientOf(t, first, second)
	err := c.RemoveServer(t.Context(), "s3")
	if weft.KindOf(err) != weft.Unavailable || !strings.Contains(err.Error(), first) {
		t.Errorf("got %v, want weft.Unavailable that names %s", err, first)
	}
	if asked.Load() != 0 {
		t.Error("it was sent to the second server too")
	}
	if err := c.RemoveServer(t.Context(), "s3"); err != nil || asked.Load() != 1 {
		t.Errorf("the next call: %v; the second server was asked %d times", err, asked.Load())
	}
}

func TestWhatWasNeverSentGoesElsewhere(t *testing.T) {
	second, asked := member(t, well)
	c := clientOf(t, nobody(t), second)
	if err := c.RemoveServer(t.Context(), "s3"); err != nil || asked.Load() != 1 {
		t.Errorf("%v; the second server was asked %d times", err, asked.Load())
	}
}

func TestEachServerIsAskedOnce(t *testing.T) {
	first, one := member(t, noQuorum)
	second, two := member(t, noQuorum)
	_, err := clientOf(t, first, second).Services(t.Context(), "")
	if weft.KindOf(err) != weft.Unavailable || !strings.Contains(err.Error(), "no majority") {
		t.Errorf("got %v, want what the server says", err)
	}
	if one.Load() != 1 || two.Load() != 1 {
		t.Errorf("asked %d and %d times", one.Load(), two.Load())
	}
}

func TestARegistrationThatIsGivenUpIsTakenBack(t *testing.T) {
	ctx, giveUp := context.WithCancel(t.Context())
	var asked []string // of the server's goroutines, one after the other
	addr, _ := member(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.Path)
		if r.Method == http.MethodPost { // it arrives, and the answer does not
			_, _ = io.Copy(io.Discard, r.Body)
			giveUp()
			<-r.Context().Done()
			return
		}
		w.WriteHeader(http.StatusOK)
	})
	c := clientOf(t, addr)
	if _, err := c.Register(ctx, Registration{Service: "order-service", ID: "o1", Port: 80}); err == nil {
		t.Error("it is registered")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if want := []string{"POST /api/instances", "DELETE /api/instances/o1"}; !slices.Equal(asked, want) {
		t.Errorf("asked %q, want %q", asked, want)
	}
}
