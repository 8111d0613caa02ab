package control

import (
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/weftpb"
)

// EncodeQuestion writes a question for another server, which asks for its token.
func EncodeQuestion(q Question, token string) *weftpb.HoldingRequest {
	return &weftpb.HoldingRequest{
		Token: token, Index: q.Index, Patience: durationpb.New(q.Patience),
		Service: &weftpb.ServiceName{Namespace: q.Service.Namespace, Name: q.Service.Name},
	}
}

// DecodeQuestion reads what EncodeQuestion wrote.
func DecodeQuestion(m *weftpb.HoldingRequest) Question {
	return Question{
		Service: weft.ServiceName{Namespace: m.GetService().GetNamespace(), Name: m.GetService().GetName()},
		Index:   m.GetIndex(), Patience: min(m.GetPatience().AsDuration(), askPatience),
	}
}

// EncodeHolding writes an answer.
func EncodeHolding(h Holding) *weftpb.HoldingResponse {
	m := &weftpb.HoldingResponse{Index: h.Index, Known: h.Known, Watchers: uint32(h.Watchers)}
	for _, r := range h.Proxies {
		p := &weftpb.ProxyReceipt{
			Identity: string(r.Identity), Id: r.ID, Role: r.Role, Address: r.Address, Pid: int32(r.PID),
			Connected: r.Connected, Acked: r.Acked, Since: timestamppb.New(r.Since), Refused: r.Refused,
		}
		if !r.Waiting.IsZero() {
			p.Waiting = timestamppb.New(r.Waiting)
		}
		m.Proxies = append(m.Proxies, p)
	}
	return m
}

// DecodeHolding reads what EncodeHolding wrote; the server is not in it.
func DecodeHolding(m *weftpb.HoldingResponse) Holding {
	h := Holding{Index: m.GetIndex(), Known: m.GetKnown(), Watchers: int(m.GetWatchers())}
	for _, p := range m.GetProxies() {
		r := Receipt{
			Identity: weft.Identity(p.GetIdentity()), ID: p.GetId(), Role: p.GetRole(), Address: p.GetAddress(), PID: int(p.GetPid()),
			Connected: p.GetConnected(), Acked: p.GetAcked(), Since: p.GetSince().AsTime(), Refused: p.GetRefused(),
		}
		if p.GetWaiting() != nil {
			r.Waiting = p.GetWaiting().AsTime()
		}
		r.Name = nameOfProxy(proxyKey{identity: r.Identity, id: r.ID})
		h.Proxies = append(h.Proxies, r)
	}
	return h
}
