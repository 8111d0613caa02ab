package soak

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
)

// appEnv makes the test program one of the applications: "web", "bytes", "greeter"
// or "sockets".
const appEnv = "WEFT_SOAK_APP"

// runApp serves on $PORT until it is ended.
func runApp(kind string) error {
	ln, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		return err
	}
	switch kind {
	case "web":
		return serveWeb(ln)
	case "sockets":
		return http.Serve(ln, http.HandlerFunc(serveSocket))
	}
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() { complain(serveBytes(c.(*net.TCPConn), kind == "greeter")) }()
	}
}

// complain prints what must never happen; the log is searched for it. Everything
// else that goes wrong is somebody's death.
func complain(err error) {
	if w := new(wrongBytes); errors.As(err, &w) {
		fmt.Fprintln(os.Stderr, w)
	}
}

// serveWeb serves HTTP/1, HTTP/2 and gRPC on one port.
func serveWeb(ln net.Listener) error {
	rpc := grpc.NewServer(grpc.MaxRecvMsgSize(16 << 20))
	testpb.RegisterTestServiceServer(rpc, rpcApp{})
	mux := http.NewServeMux()
	mux.HandleFunc("/get", serveGet)
	mux.HandleFunc("/put", servePut)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			rpc.ServeHTTP(w, r)
			return
		}
		fmt.Fprint(w, "well")
	})
	s := &http.Server{Handler: mux, Protocols: new(http.Protocols)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	return s.Serve(ln)
}

// idHeader comes back with an answer.
const idHeader = "X-Soak-Id"

func number(r *http.Request, name string) uint64 {
	n, err := strconv.ParseUint(r.FormValue(name), 10, 64)
	if err != nil {
		complain(&wrongBytes{fmt.Sprintf("%s %q has no number %s", r.Method, r.URL, name)})
	}
	return n
}

// serveGet answers with n bytes, by length or in chunks with a trailer, at once or
// with pauses.
func serveGet(w http.ResponseWriter, r *http.Request) {
	id, n := number(r, "id"), number(r, "n")
	if got := r.Header.Get(idHeader); got != r.FormValue("id") {
		complain(&wrongBytes{fmt.Sprintf("request %s came with the header of %q", r.URL, got)})
	}
	w.Header().Set(idHeader, r.FormValue("id"))
	chunked := r.FormValue("how") == "chunked"
	if chunked {
		w.Header().Set("Trailer", idHeader+"-End")
	} else {
		w.Header().Set("Content-Length", r.FormValue("n"))
	}
	if r.Method == http.MethodHead {
		return
	}
	if chunked || n > 0 {
		pieces(w, id, int64(n), r.FormValue("slow") != "")
	}
	if chunked {
		w.Header().Set(idHeader+"-End", r.FormValue("id"))
	}
}

// pieces writes a body, in a second or two if it has to be slow.
func pieces(w http.ResponseWriter, id uint64, n int64, slow bool) {
	b := newBody(id, n)
	size := int64(64 << 10)
	if slow {
		size = n/20 + 1
	}
	for b.at < b.n {
		if _, err := io.CopyN(w, b, min(size, b.n-b.at)); err != nil {
			return
		}
		if slow {
			_ = http.NewResponseController(w).Flush()
			<-time.After(20 * time.Millisecond)
		}
	}
}

// servePut checks the body of the request, and answers with one of m bytes.
func servePut(w http.ResponseWriter, r *http.Request) {
	id, n, m := number(r, "id"), number(r, "n"), number(r, "m")
	if err := check(r.Body, id, int64(n)); err != nil {
		complain(err)
		http.Error(w, err.Error(), http.StatusTeapot)
		return
	}
	w.Header().Set(idHeader, r.FormValue("id"))
	w.Header().Set("Content-Length", r.FormValue("m"))
	pieces(w, id+1, int64(m), false)
}

// rpcApp answers each message with as many bytes as it asks for. The first eight
// bytes of a payload are the id of the rest.
type rpcApp struct {
	testpb.UnimplementedTestServiceServer
}

// message is a payload: an id, and a body of it.
func message(id uint64, n int64) []byte {
	b := make([]byte, 8+n)
	binary.LittleEndian.PutUint64(b, id)
	fill(b[8:], id, 0)
	return b
}

// checkMessage returns a message's id.
func checkMessage(b []byte, n int64) (uint64, error) {
	if len(b) < 8 {
		return 0, &wrongBytes{fmt.Sprintf("message of %d bytes", len(b))}
	}
	id := binary.LittleEndian.Uint64(b)
	return id, check(bytes.NewReader(b[8:]), id, n)
}

func (rpcApp) UnaryCall(_ context.Context, r *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	id, err := checkMessage(r.GetPayload().GetBody(), int64(len(r.GetPayload().GetBody())-8))
	if err != nil {
		complain(err)
		return nil, status.Error(codes.DataLoss, err.Error())
	}
	return &testpb.SimpleResponse{Payload: &testpb.Payload{Body: message(id+1, int64(r.ResponseSize))}}, nil
}

func (rpcApp) FullDuplexCall(stream grpc.BidiStreamingServer[testpb.StreamingOutputCallRequest, testpb.StreamingOutputCallResponse]) error {
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		id, err := checkMessage(m.GetPayload().GetBody(), int64(len(m.GetPayload().GetBody())-8))
		if err != nil {
			complain(err)
			return status.Error(codes.DataLoss, err.Error())
		}
		for _, p := range m.ResponseParameters {
			if err := stream.Send(&testpb.StreamingOutputCallResponse{Payload: &testpb.Payload{Body: message(id+1, int64(p.Size))}}); err != nil {
				return err
			}
		}
	}
}

// serveSocket answers each message with one of the next id and the same size.
func serveSocket(w http.ResponseWriter, r *http.Request) {
	u := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	c, err := u.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer c.Close()
	for {
		_, m, err := c.ReadMessage()
		if err != nil {
			return
		}
		id, err := checkMessage(m, int64(len(m)-8))
		if err != nil {
			complain(err)
			return
		}
		if err := c.WriteMessage(websocket.BinaryMessage, message(id+1, int64(len(m)-8))); err != nil {
			return
		}
	}
}

// bytesHead is how a client of raw TCP begins: a zero, so that nobody takes it for
// HTTP, its id, and how many bytes follow and are to come back.
type bytesHead struct {
	Zero     uint64
	ID       uint64
	Up, Down int64
}

// greeting is what a server that speaks first says.
const greeting = "220 at your service\r\n"

// serveBytes hears a client out, until it ends, and answers.
func serveBytes(c *net.TCPConn, greets bool) error {
	defer c.Close()
	if greets {
		if _, err := io.WriteString(c, greeting); err != nil {
			return err
		}
	}
	var head bytesHead
	if err := binary.Read(c, binary.LittleEndian, &head); err != nil {
		return err
	}
	if head.Zero != 0 || head.Up > largest || head.Down > largest {
		return &wrongBytes{fmt.Sprintf("a raw client begins with %+v", head)}
	}
	up := checker{id: head.ID}
	n, err := io.Copy(struct{ io.Writer }{&up}, c)
	if err == nil && n != head.Up {
		// The client may have been cut off with its sidecar: then its end came by
		// itself. It is not answered, and knows.
		err = io.ErrUnexpectedEOF
		if n > head.Up {
			err = &wrongBytes{fmt.Sprintf("a raw client of %x sent %d bytes, want %d", head.ID, n, head.Up)}
		}
	}
	if err != nil {
		_ = c.SetLinger(0)
		return err
	}
	_, err = io.Copy(c, struct{ io.Reader }{newBody(head.ID+1, head.Down)})
	return err
}

// leaveWithParent ends an application whose sidecar was killed: nobody would.
func leaveWithParent() {
	parent := os.Getppid()
	go func() {
		for range time.Tick(200 * time.Millisecond) {
			if os.Getppid() != parent {
				os.Exit(0)
			}
		}
	}()
}
