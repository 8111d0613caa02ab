package hpack

// field is a row of the static table.
type field struct{ name, value string }

// statics is how many rows the static table has. Dynamic indexes begin behind it.
const statics = 61

// staticTable is RFC 7541 Appendix A. Row 0 is none.
var staticTable = [statics + 1]field{
	1:  {":authority", ""},
	2:  {":method", "GET"},
	3:  {":method", "POST"},
	4:  {":path", "/"},
	5:  {":path", "/index.html"},
	6:  {":scheme", "http"},
	7:  {":scheme", "https"},
	8:  {":status", "200"},
	9:  {":status", "204"},
	10: {":status", "206"},
	11: {":status", "304"},
	12: {":status", "400"},
	13: {":status", "404"},
	14: {":status", "500"},
	15: {"accept-charset", ""},
	16: {"accept-encoding", "gzip, deflate"},
	17: {"accept-language", ""},
	18: {"accept-ranges", ""},
	19: {"accept", ""},
	20: {"access-control-allow-origin", ""},
	21: {"age", ""},
	22: {"allow", ""},
	23: {"authorization", ""},
	24: {"cache-control", ""},
	25: {"content-disposition", ""},
	26: {"content-encoding", ""},
	27: {"content-language", ""},
	28: {"content-length", ""},
	29: {"content-location", ""},
	30: {"content-range", ""},
	31: {"content-type", ""},
	32: {"cookie", ""},
	33: {"date", ""},
	34: {"etag", ""},
	35: {"expect", ""},
	36: {"expires", ""},
	37: {"from", ""},
	38: {"host", ""},
	39: {"if-match", ""},
	40: {"if-modified-since", ""},
	41: {"if-none-match", ""},
	42: {"if-range", ""},
	43: {"if-unmodified-since", ""},
	44: {"last-modified", ""},
	45: {"link", ""},
	46: {"location", ""},
	47: {"max-forwards", ""},
	48: {"proxy-authenticate", ""},
	49: {"proxy-authorization", ""},
	50: {"range", ""},
	51: {"referer", ""},
	52: {"refresh", ""},
	53: {"retry-after", ""},
	54: {"server", ""},
	55: {"set-cookie", ""},
	56: {"strict-transport-security", ""},
	57: {"transfer-encoding", ""},
	58: {"user-agent", ""},
	59: {"vary", ""},
	60: {"via", ""},
	61: {"www-authenticate", ""},
}

const statusIndex = 8 // the first row with the name :status

// staticBytes is the static table as the decoder hands it out.
var staticBytes = func() (t [statics + 1]struct{ name, value []byte }) {
	for i, f := range staticTable {
		t[i].name, t[i].value = []byte(f.name), []byte(f.value)
	}
	return t
}()

// treatment is what the encoder does with the fields of a name.
type treatment uint8

const (
	ofConnection treatment = iota // may repeat: the dynamic table
	ofMessage                     // its value does not come again: a literal
	secret                        // a literal that no hop may index
)

// treatments are the names that are not ofConnection.
var treatments = map[string]treatment{
	":path":               ofMessage,
	"age":                 ofMessage,
	"content-length":      ofMessage,
	"content-range":       ofMessage,
	"date":                ofMessage,
	"etag":                ofMessage,
	"if-match":            ofMessage,
	"if-modified-since":   ofMessage,
	"if-none-match":       ofMessage,
	"if-range":            ofMessage,
	"if-unmodified-since": ofMessage,
	"last-modified":       ofMessage,
	"idempotency-key":     ofMessage,
	"traceparent":         ofMessage,
	"x-request-id":        ofMessage,

	"authorization":        secret,
	"cookie":               secret,
	"proxy-authorization":  secret,
	"set-cookie":           secret,
	"x-amz-security-token": secret,
	"x-api-key":            secret,
	"x-auth-token":         secret,
	"x-csrf-token":         secret,
}

// knownName is a name that the encoder has something to say about.
type knownName struct {
	name      string
	index     uint8 // first row of the static table with the name; 0: none
	treatment treatment
}

// knownNames is a hash table with linear probing; an empty name ends a probe.
var knownNames = func() (t [256]knownName) {
	for i := statics; i > 0; i-- {
		enterName(&t, knownName{staticTable[i].name, uint8(i), treatments[staticTable[i].name]})
	}
	for name, how := range treatments {
		enterName(&t, knownName{name, lookupIn(&t, name).index, how})
	}
	return t
}()

func enterName(t *[256]knownName, k knownName) { *lookupIn(t, k.name) = k }

// lookupIn returns the place of a name, or the empty place where it would stand.
func lookupIn(t *[256]knownName, name string) *knownName {
	at := uint8(hash(0, []byte(name)))
	for t[at].name != "" && t[at].name != name {
		at++
	}
	return &t[at]
}

// lookupName returns what is known of a name in lower case with its hash. A name
// that nothing is known of has index 0 and is ofConnection.
func lookupName(h uint32, name []byte) *knownName {
	at := uint8(h)
	for knownNames[at].name != "" && knownNames[at].name != string(name) {
		at++
	}
	return &knownNames[at]
}
