package subscribe

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
)

const exportMethod = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

// Export sends an encoded OTLP ExportTraceServiceRequest to the server, over the
// connection that is there anyway. It does not wait for a server that is away.
func (c *Client) Export(ctx context.Context, otlp []byte) error {
	var response []byte
	err := c.conn.Invoke(ctx, exportMethod, otlp, &response, grpc.ForceCodecV2(rawBytes{}))
	if err != nil {
		return rpcFailure("export", "spans", err)
	}
	return nil
}

// rawBytes is a gRPC codec for messages that are encoded already.
type rawBytes struct{}

// Name makes the content type that of protobuf, which the bytes are.
func (rawBytes) Name() string { return "proto" }

func (rawBytes) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("want []byte, not %T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

func (rawBytes) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("want *[]byte, not %T", v)
	}
	*b = data.Materialize()
	return nil
}
