package collect

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/encoding/gzip" // OTLP senders may compress
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weftmesh/weft"
)

const (
	maxBody     = 4 << 20 // decompressed
	bodyTimeout = 15 * time.Second
	retryAfter  = 2 * time.Second

	typeProto = "application/x-protobuf"
	typeJSON  = "application/json"
)

// Handler answers OTLP/HTTP: POST /v1/traces with protobuf or JSON, plain or
// gzip. Metrics and logs are not collected and get 404.
func (c *Collector) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/traces", c.serveTraces)
	for _, path := range []string{"/v1/metrics", "/v1/logs"} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "weft collects traces only: turn the exporter of "+path[len("/v1/"):]+" off, or send them elsewhere.", http.StatusNotFound)
		})
	}
	return mux
}

// httpError is a refusal with its HTTP status.
type httpError struct {
	code int
	text string
}

func (e *httpError) Error() string { return e.text }

func (c *Collector) serveTraces(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "spans are sent by POST", http.StatusMethodNotAllowed)
		return
	}
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || (mediaType != typeProto && mediaType != typeJSON) {
		http.Error(w, "the content type must be "+typeProto+" or "+typeJSON, http.StatusUnsupportedMediaType)
		return
	}
	resp, err := c.receiveHTTP(w, r, mediaType)
	if err == nil {
		writeMessage(w, mediaType, http.StatusOK, resp)
		return
	}
	code, grpcCode := http.StatusInternalServerError, codes.Internal
	var refused *httpError
	switch {
	case errors.As(err, &refused):
		code, grpcCode = refused.code, codes.InvalidArgument
	case weft.KindOf(err) == weft.Unavailable:
		code, grpcCode = http.StatusServiceUnavailable, codes.Unavailable
		if errors.Is(err, errQueueFull) {
			code = http.StatusTooManyRequests
		}
		w.Header().Set("Retry-After", strconv.Itoa(int(retryAfter/time.Second)))
	}
	writeMessage(w, mediaType, code, &statuspb.Status{Code: int32(grpcCode), Message: err.Error()})
}

func (c *Collector) receiveHTTP(w http.ResponseWriter, r *http.Request, mediaType string) (*collectorpb.ExportTraceServiceResponse, error) {
	// A sender that trickles its body holds no more than this long. A writer
	// that knows no deadlines (a test's recorder) has no connection to hold.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
	body, err := readBody(w, r)
	if err != nil {
		return nil, err
	}
	req := &collectorpb.ExportTraceServiceRequest{}
	if mediaType == typeJSON {
		err = unmarshalJSON(body, req)
	} else {
		err = proto.Unmarshal(body, req)
	}
	if err != nil {
		return nil, &httpError{http.StatusBadRequest, "the body is not an OTLP ExportTraceServiceRequest: " + err.Error()}
	}
	return c.Receive(req)
}

// readBody reads at most maxBody bytes, counted after decompression, so that a
// gzip bomb stops there too.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	var from io.Reader = http.MaxBytesReader(w, r.Body, maxBody)
	switch r.Header.Get("Content-Encoding") {
	case "", "identity":
	case "gzip":
		z, err := gzip.NewReader(from)
		if err != nil {
			return nil, &httpError{http.StatusBadRequest, "the body is not gzip: " + err.Error()}
		}
		from = z
	default:
		return nil, &httpError{http.StatusUnsupportedMediaType, "the content encoding must be gzip or identity"}
	}
	body, err := io.ReadAll(io.LimitReader(from, maxBody+1))
	var tooLarge *http.MaxBytesError
	switch {
	case len(body) > maxBody, errors.As(err, &tooLarge):
		return nil, &httpError{http.StatusRequestEntityTooLarge, "the body is larger than 4 MiB: send smaller batches"}
	case err != nil:
		return nil, &httpError{http.StatusBadRequest, "the body cannot be read: " + err.Error()}
	}
	return body, nil
}

// writeMessage answers in the sender's own encoding, as OTLP asks, also for
// errors.
func writeMessage(w http.ResponseWriter, mediaType string, code int, m proto.Message) {
	encode := proto.Marshal
	if mediaType == typeJSON {
		encode = protojson.Marshal
	}
	body, err := encode(m)
	if err != nil {
		http.Error(w, "cannot encode the answer", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", mediaType)
	w.WriteHeader(code)
	_, _ = w.Write(body) // a sender that has gone needs no answer
}

// RegisterGRPC adds OTLP's TraceService to a server. The server's own limit of
// received messages (4 MiB by default) bounds a request.
func (c *Collector) RegisterGRPC(s grpc.ServiceRegistrar) {
	collectorpb.RegisterTraceServiceServer(s, traceService{c: c})
}

type traceService struct {
	collectorpb.UnimplementedTraceServiceServer
	c *Collector
}

func (s traceService) Export(_ context.Context, req *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	resp, err := s.c.Receive(req)
	if err == nil {
		return resp, nil
	}
	if weft.KindOf(err) != weft.Unavailable {
		return nil, status.Error(codes.Internal, err.Error())
	}
	st := status.New(codes.Unavailable, err.Error())
	if hinted, detailErr := st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(retryAfter)}); detailErr == nil {
		st = hinted
	}
	return nil, st.Err()
}
