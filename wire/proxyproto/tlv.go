package proxyproto

import (
	"encoding/binary"
	"hash/crc32"
	"iter"
)

// Types of TLVs, section 2.2.1 to 2.2.7.
const (
	TypeALPN      = 0x01 // the application protocol, as in ALPN
	TypeAuthority = 0x02 // the host that the client asked for: SNI
	TypeCRC32C    = 0x03 // checksum of the whole header
	TypeNoop      = 0x04 // padding
	TypeUniqueID  = 0x05 // of the connection, at most 128 bytes
	TypeSSL       = 0x20 // about the client's TLS; has TLVs of its own
	TypeNetNS     = 0x30 // the namespace of the addresses
)

// TLVs is the end of a header of version 2: type (1 byte), length (2, big-endian),
// value, one after the other. Parse returns well-formed ones only.
type TLVs []byte

// All ranges over types and values.
func (t TLVs) All() iter.Seq2[byte, []byte] {
	return func(yield func(byte, []byte) bool) {
		for rest := t; ; {
			kind, value, behind, ok := rest.next()
			if !ok || !yield(kind, value) {
				return
			}
			rest = behind
		}
	}
}

// Get returns the first value of a type.
func (t TLVs) Get(kind byte) (value []byte, ok bool) {
	for k, v := range t.All() {
		if k == kind {
			return v, true
		}
	}
	return nil, false
}

// AppendTLV appends one. Values end at 65535 bytes; what is over is not a TLV, and
// AppendV2 would refuse it.
func AppendTLV(dst TLVs, kind byte, value []byte) TLVs {
	dst = append(dst, kind, byte(len(value)>>8), byte(len(value)))
	return append(dst, value...)
}

// next cuts the first TLV off.
func (t TLVs) next() (kind byte, value []byte, behind TLVs, ok bool) {
	if len(t) < 3 {
		return 0, nil, t, false
	}
	end := 3 + int(binary.BigEndian.Uint16(t[1:]))
	if end > len(t) {
		return 0, nil, t, false
	}
	return t[0], t[3:end], t[end:], true
}

// checksum finds where the value of the CRC-32C begins, 0 when there is none, and
// checks that the TLVs are well-formed.
func (t TLVs) checksum() (at int, err error) {
	for rest := t; len(rest) > 0; {
		kind, value, behind, ok := rest.next()
		switch {
		case !ok, kind == TypeUniqueID && len(value) > 128:
			return 0, errBadTLV
		case kind == TypeCRC32C && (len(value) != 4 || at > 0):
			return 0, errBadChecksum
		case kind == TypeCRC32C:
			at = len(t) - len(behind) - 4
		}
		rest = behind
	}
	return at, nil
}

// checkTLVs checks the TLVs at the end of header.
func checkTLVs(header []byte, t TLVs) error {
	at, err := t.checksum()
	if err != nil || at == 0 {
		return err
	}
	if at += len(header) - len(t); binary.BigEndian.Uint32(header[at:]) != sum(header, at) {
		return errBadChecksum
	}
	return nil
}

// sealTLVs fills in the checksum among the TLVs at the end of header.
func sealTLVs(header []byte, t TLVs) error {
	at, err := t.checksum()
	if err != nil || at == 0 {
		return err
	}
	at += len(header) - len(t)
	binary.BigEndian.PutUint32(header[at:], sum(header, at))
	return nil
}

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	noSum      [4]byte
)

// sum is the CRC-32C of header with the four bytes at at, its own, taken as zeros.
// header is not changed: others may be reading it.
func sum(header []byte, at int) uint32 {
	s := crc32.Update(0, castagnoli, header[:at])
	s = crc32.Update(s, castagnoli, noSum[:])
	return crc32.Update(s, castagnoli, header[at+4:])
}
