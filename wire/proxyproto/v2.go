package proxyproto

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

// The fixed part of version 2, section 2.2:
//
//	 0                12        13        14      16
//	+-----------------+---------+---------+-------+---------------+------+
//	| \r\n\r\n\0\r\n… | version | family  | len   | addresses     | TLVs |
//	|      QUIT\n     | command | transp. | (BE)  | 0, 12, 36, 216|      |
//	+-----------------+---------+---------+-------+---------------+------+
//	                                      len counts: ^^^^^^^^^^^^^^^^^^^^
const (
	fixedV2 = 16

	commandLocal = 0x0
	commandProxy = 0x1

	familyUnspec = 0x0
	familyIPv4   = 0x1
	familyIPv6   = 0x2
	familyUnix   = 0x3

	transportUnspec   = 0x0
	transportStream   = 0x1
	transportDatagram = 0x2

	pathLen = 108 // of struct sockaddr_un
)

// addressLen is how long the addresses of each family are.
var addressLen = [...]int{familyUnspec: 0, familyIPv4: 2 * (4 + 2), familyIPv6: 2 * (16 + 2), familyUnix: 2 * pathLen}

func parse2(buf []byte, limit int) (h Header, n int, err error) {
	if len(buf) > 12 {
		switch {
		case buf[12]>>4 != 2:
			return Header{}, 0, errBadVersion
		case buf[12]&0xf > commandProxy:
			return Header{}, 0, errBadCommand
		}
	}
	if len(buf) < fixedV2 {
		return Header{}, 0, ErrIncomplete
	}
	n = fixedV2 + int(binary.BigEndian.Uint16(buf[14:]))
	if n > limit {
		return Header{}, 0, errTooLarge
	}
	if len(buf) < n {
		return Header{}, 0, ErrIncomplete
	}
	h.Version = 2
	if buf[12]&0xf == commandLocal {
		h.Local = true
		return h, n, nil
	}
	if err := h.parseBlock(buf[13], buf[fixedV2:n]); err != nil {
		return Header{}, 0, err
	}
	if err := checkTLVs(buf[:n], h.TLVs); err != nil {
		return Header{}, 0, err
	}
	return h, n, nil
}

// parseBlock reads the addresses, and what is behind them is TLVs.
func (h *Header) parseBlock(kind byte, block []byte) error {
	family, transport := kind>>4, kind&0xf
	if family > familyUnix || transport > transportDatagram || (family == familyUnspec) != (transport == transportUnspec) {
		return errBadFamily
	}
	size := addressLen[family]
	if len(block) < size {
		return errShortBlock
	}
	h.TLVs = TLVs(block[size:])
	switch family {
	case familyIPv4:
		h.Source = addrPort(block[0:4], block[8:])
		h.Destination = addrPort(block[4:8], block[10:])
	case familyIPv6:
		h.Source = addrPort(block[0:16], block[32:])
		h.Destination = addrPort(block[16:32], block[34:])
	case familyUnix:
		h.Unix = true
		h.SourcePath = bytes.TrimRight(block[:pathLen], "\x00")
		h.DestinationPath = bytes.TrimRight(block[pathLen:2*pathLen], "\x00")
	}
	h.Datagram = transport == transportDatagram
	return nil
}

func addrPort(addr, port []byte) netip.AddrPort {
	a, _ := netip.AddrFromSlice(addr)
	return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(port))
}

// AppendV2 appends h in version 2. The value of a CRC-32C among its TLVs is filled
// in: AppendTLV(tlvs, TypeCRC32C, make([]byte, 4)) asks for one. It fails, and dst
// stays as it was, when a path is longer than 108 bytes, when the TLVs are not
// well-formed, or when all is longer than the 65551 bytes that a header can have.
func AppendV2(dst []byte, h Header) ([]byte, error) {
	command, family, transport := byte(commandProxy), byte(familyUnspec), byte(transportStream)
	if h.Datagram {
		transport = transportDatagram
	}
	switch {
	case h.Local:
		command, transport = commandLocal, transportUnspec
	case h.Unix:
		family = familyUnix
	case !h.ip():
		transport = transportUnspec
	default:
		family = familyIPv6
		if a, _ := h.addresses(); a.Is4() {
			family = familyIPv4
		}
	}
	tlvs := h.TLVs
	if h.Local {
		tlvs = nil // its receiver would skip them
	}
	size := addressLen[family] + len(tlvs)
	switch {
	case size > 0xffff:
		return dst, errTooLarge
	case family == familyUnix && (len(h.SourcePath) > pathLen || len(h.DestinationPath) > pathLen):
		return dst, errBadAddress
	}
	start := len(dst)
	dst = append(dst, v2Start...)
	dst = append(dst, 2<<4|command, family<<4|transport, byte(size>>8), byte(size))
	dst = h.appendAddresses(dst, family)
	dst = append(dst, tlvs...)
	if err := sealTLVs(dst[start:], TLVs(dst[len(dst)-len(tlvs):])); err != nil {
		return dst[:start], err
	}
	return dst, nil
}

func (h *Header) appendAddresses(dst []byte, family byte) []byte {
	switch family {
	case familyUnspec:
		return dst
	case familyUnix:
		return appendPath(appendPath(dst, h.SourcePath), h.DestinationPath)
	case familyIPv4:
		source, destination := h.addresses()
		a, b := source.As4(), destination.As4()
		dst = append(append(dst, a[:]...), b[:]...)
	case familyIPv6:
		source, destination := h.addresses()
		a, b := source.As16(), destination.As16()
		dst = append(append(dst, a[:]...), b[:]...)
	}
	dst = binary.BigEndian.AppendUint16(dst, h.Source.Port())
	return binary.BigEndian.AppendUint16(dst, h.Destination.Port())
}

func appendPath(dst, path []byte) []byte {
	var padded [pathLen]byte
	copy(padded[:], path)
	return append(dst, padded[:]...)
}
