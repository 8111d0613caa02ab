package http2

import (
	"encoding/binary"
	"strconv"
)

// Frame types (RFC 9113 §6).
const (
	frameData         = 0x0
	frameHeaders      = 0x1
	framePriority     = 0x2
	frameReset        = 0x3
	frameSettings     = 0x4
	framePush         = 0x5
	framePing         = 0x6
	frameGoAway       = 0x7
	frameWindowUpdate = 0x8
	frameContinuation = 0x9
)

const (
	flagEndStream  = 0x1
	flagAck        = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

const (
	headerLen    = 9       // of a frame
	frameMost    = 1 << 14 // longest payload that we accept: the initial value of SETTINGS_MAX_FRAME_SIZE
	windowInit   = 1<<16 - 1
	windowMost   = 1<<31 - 1
	idMost       = 1<<31 - 1
	priorityLen  = 5
	settingLen   = 6
	pingLen      = 8
	resetLen     = 4
	incrementLen = 4
	goAwayLen    = 8
)

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// Settings (RFC 9113 §6.5.2, RFC 8441 §3).
const (
	settingTableSize       = 0x1
	settingPush            = 0x2
	settingStreams         = 0x3
	settingWindow          = 0x4
	settingFrameSize       = 0x5
	settingHeadBytes       = 0x6
	settingExtendedConnect = 0x8
)

// Code is an error code (RFC 9113 §7). Peers may send codes without a name.
type Code uint32

const (
	NoError            Code = 0x0
	ProtocolError      Code = 0x1
	InternalError      Code = 0x2
	FlowControlError   Code = 0x3
	SettingsTimeout    Code = 0x4
	StreamClosed       Code = 0x5
	FrameSizeError     Code = 0x6
	RefusedStream      Code = 0x7
	Cancel             Code = 0x8
	CompressionError   Code = 0x9
	ConnectError       Code = 0xa
	EnhanceYourCalm    Code = 0xb
	InadequateSecurity Code = 0xc
	HTTP11Required     Code = 0xd
)

var codeNames = [...]string{
	"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT",
	"STREAM_CLOSED", "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR",
	"CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
}

func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return "0x" + strconv.FormatUint(uint64(c), 16)
}

// frame is the header of a frame.
type frame struct {
	length int
	kind   uint8
	flags  uint8
	stream uint32
}

// readFrame reads a header from the first nine bytes of b.
func readFrame(b []byte) frame {
	_ = b[headerLen-1]
	return frame{
		length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]),
		kind:   b[3],
		flags:  b[4],
		stream: binary.BigEndian.Uint32(b[5:]) & idMost, // the reserved bit is ignored
	}
}

func (f frame) has(flag uint8) bool { return f.flags&flag != 0 }

func appendFrame(dst []byte, length int, kind, flags uint8, stream uint32) []byte {
	return append(dst, byte(length>>16), byte(length>>8), byte(length), kind, flags,
		byte(stream>>24), byte(stream>>16), byte(stream>>8), byte(stream))
}

// putLength writes the length into the header at the beginning of b.
func putLength(b []byte, length int) {
	b[0], b[1], b[2] = byte(length>>16), byte(length>>8), byte(length)
}

func appendSetting(dst []byte, id uint16, value uint32) []byte {
	dst = binary.BigEndian.AppendUint16(dst, id)
	return binary.BigEndian.AppendUint32(dst, value)
}

func appendReset(dst []byte, stream uint32, code Code) []byte {
	dst = appendFrame(dst, resetLen, frameReset, 0, stream)
	return binary.BigEndian.AppendUint32(dst, uint32(code))
}

func appendWindowUpdate(dst []byte, stream, increment uint32) []byte {
	dst = appendFrame(dst, incrementLen, frameWindowUpdate, 0, stream)
	return binary.BigEndian.AppendUint32(dst, increment)
}

// appendGoAway says why in the debug data, too: it is for people.
func appendGoAway(dst []byte, last uint32, code Code, reason string) []byte {
	dst = appendFrame(dst, goAwayLen+len(reason), frameGoAway, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, last)
	dst = binary.BigEndian.AppendUint32(dst, uint32(code))
	return append(dst, reason...)
}
