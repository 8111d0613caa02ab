// Package proxyproto reads and writes the header of the PROXY protocol, versions
// 1 and 2, with which a proxy tells the next hop whose connection it carries. Bytes
// in, values out: no sockets, no clock, and no allocations.
//
// # Reading
//
// Give Parse what was read so far, from the connection's first byte:
//
//	h, n, err := proxyproto.Parse(buf)
//	switch {
//	case err == nil: // buf[:n] is the header; what the client said begins at buf[n]
//	case err == proxyproto.ErrIncomplete: // read more behind buf and call again
//	default: // *Error: not a header; close the connection
//	}
//
// The answer does not depend on how the bytes were cut into reads, and a buffer of
// DefaultLimit bytes is always enough. Use the header's addresses when
// h.Source.IsValid, and the connection's own otherwise (LOCAL, UNKNOWN, UNSPEC,
// UNIX). Whoever may connect may claim any address: take headers from trusted
// peers only, and from them always, for a header that is optional can be forged by
// everybody who may leave it out.
//
// IPv4 addresses are plain even when they came mapped into IPv6, so that a rule
// about 10.0.0.1 also meets ::ffff:10.0.0.1.
//
// # What is refused
//
// Version 1: lines over 107 bytes, ends other than CR LF, control bytes, more or
// less than one space between words, ports with signs or leading zeros, zones.
// Version 2: unknown commands, families and transports, a block shorter than its
// addresses, TLVs that do not fill the block exactly, a wrong CRC-32C, more bytes
// than the limit. What follows the header of a LOCAL command is skipped unread, as
// the specification asks for (section 2.2).
package proxyproto

import (
	"errors"
	"net/netip"
)

// DefaultLimit bounds a header of version 2, its 16 fixed bytes included: what one
// TCP segment carries over any path. UNIX addresses with a few TLVs fit.
const DefaultLimit = 536

// ErrIncomplete says that the header has not ended yet: read more and parse again.
var ErrIncomplete = errors.New("proxyproto: incomplete header")

// Error is a refused header. All Errors are static values of this package: they
// may be compared by pointer and must not be changed.
type Error struct {
	// Reason is a short word for logs and metric labels: "bad_line", "bad_checksum".
	Reason string
}

func (e *Error) Error() string { return "proxyproto: " + e.Reason }

var (
	errNotProxy    = &Error{"not_proxy"}    // begins like neither version
	errTooLarge    = &Error{"too_large"}    // over 107 bytes (v1), over the limit (v2)
	errBadLine     = &Error{"bad_line"}     // v1: not the words and spaces of a header
	errBadFamily   = &Error{"bad_family"}   // unknown family or transport
	errBadAddress  = &Error{"bad_address"}  // not an address of the family
	errBadPort     = &Error{"bad_port"}     // v1
	errBadVersion  = &Error{"bad_version"}  // v2: neither 2 nor anything known
	errBadCommand  = &Error{"bad_command"}  // v2: neither LOCAL nor PROXY
	errShortBlock  = &Error{"short_block"}  // v2: no room for the family's addresses
	errBadTLV      = &Error{"bad_tlv"}      // v2: TLVs do not fill the block exactly
	errBadChecksum = &Error{"bad_checksum"} // v2: CRC-32C wrong, or there twice
)

// Header is what a proxy says of the connection that it carries. What Parse puts
// into its slices points into the parsed bytes.
type Header struct {
	// Version is 1 or 2; the Append functions do not look at it.
	Version uint8
	// Local says that the proxy speaks for itself, as health checks do.
	Local bool
	// Datagram says that the client speaks UDP, or a datagram socket.
	Datagram bool
	// Unix says that the client and the proxy are UNIX sockets, and that the paths
	// count instead of the addresses.
	Unix bool

	Source, Destination netip.AddrPort

	// SourcePath and DestinationPath have no trailing NULs. A path that begins with
	// NUL is an abstract one.
	SourcePath, DestinationPath []byte

	TLVs TLVs
}

const (
	v1Start = "PROXY "
	v2Start = "\r\n\r\n\x00\r\nQUIT\n"
)

// Parse reads the header that buf begins with, and returns its length.
func Parse(buf []byte) (h Header, n int, err error) { return ParseLimit(buf, DefaultLimit) }

// ParseLimit is Parse with another bound, in bytes, for headers of version 2:
// proxies that pass client certificates on in TLVs need more than DefaultLimit.
func ParseLimit(buf []byte, limit int) (h Header, n int, err error) {
	switch {
	case starts(buf, v2Start):
		return parse2(buf, limit)
	case starts(buf, v1Start):
		return parse1(buf)
	}
	return Header{}, 0, errNotProxy
}

// starts says whether buf begins with start as far as it goes.
func starts(buf []byte, start string) bool {
	n := min(len(buf), len(start))
	return string(buf[:n]) == start[:n]
}

// ip says whether both addresses are known.
func (h *Header) ip() bool {
	return !h.Local && !h.Unix && h.Source.IsValid() && h.Destination.IsValid()
}

// addresses returns both addresses in one family: plain IPv4 when both can be, else
// both as IPv6 without zone.
func (h *Header) addresses() (source, destination netip.Addr) {
	source, destination = h.Source.Addr().Unmap(), h.Destination.Addr().Unmap()
	if source.Is4() && destination.Is4() {
		return source, destination
	}
	return netip.AddrFrom16(source.As16()), netip.AddrFrom16(destination.As16())
}
