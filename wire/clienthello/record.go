package clienthello

// TLS records and handshake messages, RFC 8446 sections 5.1 and 4:
//
//	record:  type (1) = 22, version (2) = 3.x, length (2), fragment
//	message: type (1) = 1, length (3), hello
const (
	recordHeader    = 5
	recordHandshake = 22
	mostFragment    = 1 << 14
	messageHeader   = 4
	messageHello    = 1
)

// unwrap returns the hello out of the records with which buf begins.
func unwrap(buf []byte) ([]byte, error) {
	var head [messageHeader]byte
	have, need := 0, -1 // bytes of the message; need is known when its header is there
	for at := 0; ; {
		fragment, size, err := record(buf[at:])
		if err == errBadRecord && at == 0 {
			return nil, errNotTLS
		}
		if err != nil {
			return nil, err
		}
		before := have
		if have < messageHeader {
			copy(head[have:], fragment)
		}
		have += len(fragment)
		if have > 0 && head[0] != messageHello {
			return nil, errNotHello
		}
		if have >= messageHeader {
			need = messageHeader + (int(head[1])<<16 | int(head[2])<<8 | int(head[3]))
			// Were the rest all in this record, it would end here at the earliest.
			if at+recordHeader+need-before > Limit {
				return nil, errTooLarge
			}
		}
		switch {
		case need >= 0 && have >= need && at == 0:
			return fragment[messageHeader:need], nil
		case need >= 0 && have >= need:
			return join(buf, need)[messageHeader:], nil
		case len(fragment) < size:
			return nil, ErrIncomplete
		}
		at += recordHeader + size
	}
}

// record returns what has arrived of the fragment of the record at the beginning
// of buf, and how long it will be.
func record(buf []byte) (fragment []byte, size int, err error) {
	switch {
	case len(buf) > 0 && buf[0] != recordHandshake,
		len(buf) > 1 && buf[1] != 3: // the minor version says nothing (RFC 8446 appendix D)
		return nil, 0, errBadRecord
	case len(buf) < recordHeader:
		return nil, 0, ErrIncomplete
	}
	size = int(buf[3])<<8 | int(buf[4])
	if size == 0 || size > mostFragment {
		return nil, 0, errBadRecord
	}
	fragment = buf[recordHeader:]
	return fragment[:min(len(fragment), size)], size, nil
}

// join copies need bytes of a message that is known to be there out of its records.
func join(buf []byte, need int) []byte {
	message := make([]byte, 0, need)
	for len(message) < need {
		fragment, size, _ := record(buf)
		message = append(message, fragment[:min(len(fragment), need-len(message))]...)
		buf = buf[min(len(buf), recordHeader+size):]
	}
	return message
}
