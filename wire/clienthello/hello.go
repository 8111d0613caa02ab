package clienthello

import "slices"

// The hello, RFC 8446 section 4.1.2:
//
//	version (2), random (32), session ID (1+), cipher suites (2+),
//	compression methods (1+), extensions (2+: type (2), data (2+))
const (
	extensionName = 0
	extensionALPN = 16
	hostName      = 0 // the only type of name there is

	// mostExtensions is several times what clients send. It bounds the search for
	// duplicates, whose work grows with the square.
	mostExtensions = 64
)

func (h *Hello) parse(body []byte) error {
	in := input(body)
	version, ok := in.bytes(2)
	if !ok || version[0] != 3 {
		return errMalformed
	}
	_, random := in.bytes(32)
	session, ok1 := in.vector8()
	suites, ok2 := in.vector16()
	methods, ok3 := in.vector8()
	if !random || !ok1 || !ok2 || !ok3 || len(session) > 32 || len(suites) == 0 || len(suites)%2 != 0 || len(methods) == 0 {
		return errMalformed
	}
	if len(in) == 0 {
		return nil // TLS 1.2 and before may go without
	}
	extensions, ok := in.vector16()
	if !ok || len(in) > 0 {
		return errMalformed
	}
	return h.parseExtensions(extensions)
}

func (h *Hello) parseExtensions(in input) error {
	var seen [mostExtensions]uint16
	for n := 0; len(in) > 0; n++ {
		kind, ok := in.uint16()
		data, ok1 := in.vector16()
		switch {
		case !ok || !ok1:
			return errMalformed
		case n == mostExtensions:
			return errExtensions
		case slices.Contains(seen[:n], kind):
			return errDuplicate
		}
		seen[n] = kind
		var err error
		switch kind {
		case extensionName:
			err = h.parseNames(data)
		case extensionALPN:
			err = h.parseProtocols(data)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// parseNames reads a list that can only have one name: there is one type of names,
// and each type may occur once.
func (h *Hello) parseNames(in input) error {
	list, ok := in.vector16()
	if !ok || len(in) > 0 || len(list) == 0 {
		return errMalformed
	}
	kind, ok1 := list.bytes(1)
	name, ok2 := list.vector16()
	switch {
	case !ok1 || !ok2:
		return errMalformed
	case kind[0] != hostName:
		return errBadName
	case len(list) > 0:
		return errDuplicate
	}
	return h.setName(name)
}

func (h *Hello) parseProtocols(in input) error {
	list, ok := in.vector16()
	if !ok || len(in) > 0 {
		return errMalformed
	}
	if len(list) == 0 {
		return errBadALPN
	}
	h.alpn = list
	for len(list) > 0 {
		protocol, ok := list.vector8()
		switch {
		case !ok:
			return errMalformed
		case len(protocol) == 0:
			return errBadALPN
		}
	}
	return nil
}

// input is bytes that are read from their beginning.
type input []byte

func (in *input) bytes(n int) (b input, ok bool) {
	if len(*in) < n {
		return nil, false
	}
	b, *in = (*in)[:n], (*in)[n:]
	return b, true
}

func (in *input) uint16() (n uint16, ok bool) {
	b, ok := in.bytes(2)
	if !ok {
		return 0, false
	}
	return uint16(b[0])<<8 | uint16(b[1]), true
}

// vector8 and vector16 read bytes behind their length in one or two bytes.
func (in *input) vector8() (b input, ok bool) {
	n, ok := in.bytes(1)
	if !ok {
		return nil, false
	}
	return in.bytes(int(n[0]))
}

func (in *input) vector16() (b input, ok bool) {
	n, ok := in.uint16()
	if !ok {
		return nil, false
	}
	return in.bytes(int(n))
}
