package hpack

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// list gathers what a decoder reports: "name: value", with "!" behind a sensitive
// one.
type list []string

func (l *list) add(name, value []byte, sensitive bool) bool {
	s := fmt.Sprintf("%s: %s", name, value)
	if sensitive {
		s += "!"
	}
	*l = append(*l, s)
	return true
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func decode(t testing.TB, d *Decoder, block []byte) list {
	t.Helper()
	var got list
	if err := d.Decode(block, got.add); err != nil {
		t.Fatalf("% x: %v", block, err)
	}
	return got
}

// dump is the content of a table, the newest first.
func (t *table) dump() (l list) {
	for age := range t.len() {
		name, value := t.at(age)
		l.add(name, value, false)
	}
	return l
}

// The examples of RFC 7541 Appendix C. A series is one connection.
func TestExamples(t *testing.T) {
	type step struct {
		block string
		want  list
		table list
		size  uint32
	}
	request := []step{
		{want: list{":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"},
			table: list{":authority: www.example.com"}, size: 57},
		{want: list{":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com", "cache-control: no-cache"},
			table: list{"cache-control: no-cache", ":authority: www.example.com"}, size: 110},
		{want: list{":method: GET", ":scheme: https", ":path: /index.html", ":authority: www.example.com", "custom-key: custom-value"},
			table: list{"custom-key: custom-value", "cache-control: no-cache", ":authority: www.example.com"}, size: 164},
	}
	const cookie = "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"
	response := []step{
		{want: list{":status: 302", "cache-control: private", "date: Mon, 21 Oct 2013 20:13:21 GMT", "location: https://www.example.com"},
			table: list{"location: https://www.example.com", "date: Mon, 21 Oct 2013 20:13:21 GMT", "cache-control: private", ":status: 302"}, size: 222},
		{want: list{":status: 307", "cache-control: private", "date: Mon, 21 Oct 2013 20:13:21 GMT", "location: https://www.example.com"},
			table: list{":status: 307", "location: https://www.example.com", "date: Mon, 21 Oct 2013 20:13:21 GMT", "cache-control: private"}, size: 222},
		{want: list{":status: 200", "cache-control: private", "date: Mon, 21 Oct 2013 20:13:22 GMT", "location: https://www.example.com", "content-encoding: gzip", cookie},
			table: list{cookie, "content-encoding: gzip", "date: Mon, 21 Oct 2013 20:13:22 GMT"}, size: 215},
	}
	with := func(steps []step, blocks ...string) []step {
		steps = slices.Clone(steps)
		for i := range steps {
			steps[i].block = blocks[i]
		}
		return steps
	}
	for _, c := range []struct {
		name  string
		max   uint32
		steps []step
	}{
		{"C.2.1", defaultTable, []step{{"400a637573746f6d2d6b65790d637573746f6d2d686561646572", list{"custom-key: custom-header"}, list{"custom-key: custom-header"}, 55}}},
		{"C.2.2", defaultTable, []step{{"040c2f73616d706c652f70617468", list{":path: /sample/path"}, nil, 0}}},
		{"C.2.3", defaultTable, []step{{"100870617373776f726406736563726574", list{"password: secret!"}, nil, 0}}},
		{"C.2.4", defaultTable, []step{{"82", list{":method: GET"}, nil, 0}}},
		{"C.3", defaultTable, with(request,
			"828684410f7777772e6578616d706c652e636f6d",
			"828684be58086e6f2d6361636865",
			"828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565")},
		{"C.4", defaultTable, with(request,
			"828684418cf1e3c2e5f23a6ba0ab90f4ff",
			"828684be5886a8eb10649cbf",
			"828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf")},
		{"C.5", 256, with(response,
			"4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e1768747470733a2f2f7777772e6578616d706c652e636f6d",
			"4803333037c1c0bf",
			"88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31")},
		{"C.6", 256, with(response,
			"488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
			"4883640effc1c0bf",
			"88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007")},
	} {
		t.Run(c.name, func(t *testing.T) {
			var d Decoder
			d.begin()
			d.table.max = c.max // the examples set it without an update
			for i, s := range c.steps {
				if got := decode(t, &d, unhex(t, s.block)); !slices.Equal(got, s.want) {
					t.Errorf("block %d:\n%q\nwant\n%q", i+1, got, s.want)
				}
				if got := d.table.dump(); !slices.Equal(got, s.table) {
					t.Errorf("table %d:\n%q\nwant\n%q", i+1, got, s.table)
				}
				if d.table.size != s.size {
					t.Errorf("table %d has size %d, want %d", i+1, d.table.size, s.size)
				}
			}
		})
	}
}

// The examples of RFC 7541 C.1, and the ends of the range.
func TestIntegers(t *testing.T) {
	for _, c := range []struct {
		bits uint8
		n    uint32
		hex  string
	}{
		{5, 10, "0a"},
		{5, 1337, "1f9a0a"},
		{8, 42, "2a"},
		{7, 126, "7e"},
		{7, 127, "7f00"},
		{7, 128, "7f01"},
		{7, 254, "7f7f"},
		{7, 255, "7f8001"},
		{5, 1<<32 - 1, "1fe0ffffff0f"},
	} {
		if got := hex.EncodeToString(appendInt(nil, 0, c.bits, c.n)); got != c.hex {
			t.Errorf("%d with %d bits is %s, want %s", c.n, c.bits, got, c.hex)
		}
		n, rest, err := readInt(append(unhex(t, c.hex), 7), c.bits)
		if err != nil || n != c.n || len(rest) != 1 {
			t.Errorf("%s reads as %d (%v), %d bytes left; want %d", c.hex, n, err, len(rest), c.n)
		}
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct {
		name, block string
		want        error
	}{
		{"index 0", "80", ErrIndex},
		{"index behind both tables", "be", ErrIndex},
		{"name index behind both tables", "7e01 61", ErrIndex},
		{"name index of a literal that is not indexed", "0f2f 01 61", ErrIndex},
		{"a huge index", "ff80ffffff0f", ErrIndex},
		{"index of 33 bits", "ffffffffff1f", ErrInteger},
		{"index of many zeros", "ff808080808000", ErrInteger},
		{"length of 33 bits", "0001 61 7fffffffff7f", ErrInteger},
		{"index that breaks off", "ff80", ErrTruncated},
		{"no name", "40", ErrTruncated},
		{"no value", "4001 61", ErrTruncated},
		{"half a name", "4002 61", ErrTruncated},
		{"half a value", "4001 61 02 62", ErrTruncated},
		{"a value longer than any block", "4001 61 7f80ffffff0f", ErrTruncated},
		{"no value behind a name index", "41", ErrTruncated},
		{"Huffman: 8 bits of padding", "4001 61 82 1fff", ErrHuffman},
		{"Huffman: padding with a zero", "4001 61 81 1e", ErrHuffman},
		{"Huffman: padding of zeros", "4001 61 81 18", ErrHuffman},
		{"Huffman: EOS", "4001 61 84 ffffffff", ErrHuffman},
		{"Huffman: EOS in the middle", "4001 61 85 fffffffc7f", ErrHuffman},
		{"Huffman: nothing but padding", "4001 61 81 ff", ErrHuffman},
		{"Huffman: a long code that breaks off", "4001 61 83 ffffc0", ErrHuffman},
		{"Huffman in the name", "4081 ff 0161", ErrHuffman},
		{"update over the limit", "3fe21f", ErrUpdate},
		{"update behind a field", "82 20", ErrLateUpdate},
		{"update that breaks off", "3f", ErrTruncated},
		{"update of 33 bits", "3fffffffff7f", ErrInteger},
	} {
		var d Decoder
		if err := d.Decode(unhex(t, c.block), nil); err != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func TestAccepted(t *testing.T) {
	for _, c := range []struct {
		name, block string
		want        list
	}{
		{"nothing", "", nil},
		{"an empty name and value", "0000 00", list{": "}},
		{"an empty coded value", "0001 61 80", list{"a: "}},
		{"seven bits of padding", "0001 61 83 028a7f", list{"a: 0  "}},
		{"largest update", "3fe11f", nil},
		{"two updates", "20 3fe11f 82", list{":method: GET"}},
		{"a number with zeros", "0001 61 7f8000" + strings.Repeat("62", 127), list{"a: " + strings.Repeat("b", 127)}},
		{"a static name", "0f02 01 62", list{"accept-language: b"}},
	} {
		var d Decoder
		var got list
		err := d.Decode(unhex(t, c.block), got.add)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// A name in the table stays readable while its own entry is evicted (§4.4).
func TestNameOfAnEntryThatIsEvicted(t *testing.T) {
	var d Decoder
	d.begin()
	d.table.max = 100
	decode(t, &d, unhex(t, "4004 6e616d65 01 61")) // name: a, size 37
	long := strings.Repeat("v", 60)
	block := append([]byte{0x7e, 60}, long...)
	for range 200 { // past the end of the memory, several times
		if got := decode(t, &d, block); !slices.Equal(got, list{"name: " + long}) {
			t.Fatalf("got %q", got)
		}
		if got := d.table.dump(); !slices.Equal(got, list{"name: " + long}) {
			t.Fatalf("table %q", got)
		}
	}
}

func TestLiteralLargerThanTheTable(t *testing.T) {
	var d Decoder
	decode(t, &d, unhex(t, "4001 61 01 62"))
	long := strings.Repeat("v", 5000)
	block := appendPlain([]byte{0x40, 1, 'a'}, []byte(long))
	if got := decode(t, &d, block); !slices.Equal(got, list{"a: " + long}) {
		t.Error("not reported as it was sent")
	}
	if d.table.len() != 0 || d.table.size != 0 {
		t.Errorf("left a table of %d", d.table.size)
	}
	if got := decode(t, &d, unhex(t, "4001 61 01 63 be")); !slices.Equal(got, list{"a: c", "a: c"}) {
		t.Errorf("got %q", got)
	}
}

// What was announced binds the peer from its acknowledgement on (RFC 9113 §4.3.1).
func TestDecoderSetMaxTable(t *testing.T) {
	for _, c := range []struct {
		name  string
		sizes []uint32
		block string
		want  error
	}{
		{"smaller, and the peer follows", []uint32{100}, "3f45 82", nil},
		{"smaller, and the peer goes further down", []uint32{100}, "20 82", nil},
		{"smaller, and the peer says nothing", []uint32{100}, "82", ErrNoUpdate},
		{"smaller, and an empty block", []uint32{100}, "", ErrNoUpdate},
		{"smaller, and the peer takes more", []uint32{100}, "3f46", ErrUpdate},
		{"down and up", []uint32{100, 4096}, "3f45 3fe11f", nil},
		{"down and up, and the peer only says up", []uint32{100, 4096}, "3fe11f", ErrUpdate},
		{"down twice", []uint32{100, 50}, "3f13", nil},
		{"down, and halfway up", []uint32{50, 100}, "3f13 3f45", nil},
		{"larger, and the peer does not care", []uint32{8192}, "82", nil},
		{"larger, and the peer follows", []uint32{8192}, "3fe13f", nil},
		{"larger, and the peer takes more", []uint32{8192}, "3fe23f", ErrUpdate},
	} {
		var d Decoder
		for _, n := range c.sizes {
			d.SetMaxTable(n)
		}
		if err := d.Decode(unhex(t, c.block), nil); err != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// After a block that followed, the next one need not say it again.
func TestShrinkIsSaidOnce(t *testing.T) {
	var d Decoder
	decode(t, &d, unhex(t, "4001 61 01 62"))
	d.SetMaxTable(0)
	decode(t, &d, unhex(t, "20"))
	decode(t, &d, unhex(t, "82"))
	if d.table.len() != 0 {
		t.Error("the table was not emptied")
	}
}

// One entry of a whole table and a reference to it in each byte: what is handed
// out is bounded by emit, what is decoded stays cheap, and the connection is good.
func TestBomb(t *testing.T) {
	value := strings.Repeat("v", defaultTable-entryOverhead-1)
	block := appendPlain([]byte{0x40, 1, 'a'}, []byte(value))
	for range 16 << 10 {
		block = append(block, 0xbe)
	}
	var d Decoder
	const most = 64 << 10
	bytes, calls := 0, 0
	err := d.Decode(block, func(name, value []byte, _ bool) bool {
		calls++
		bytes += len(name) + len(value) + entryOverhead
		return bytes <= most
	})
	if err != nil || calls != most/defaultTable+1 {
		t.Errorf("%d calls (%v), want %d", calls, err, most/defaultTable+1)
	}
	if got := decode(t, &d, []byte{0xbe}); !slices.Equal(got, list{"a: " + value}) {
		t.Error("the table is not the peer's any more")
	}
	if held := cap(d.table.buf) + cap(d.scratch); held > 2*defaultTable {
		t.Errorf("holds %d bytes", held)
	}
}

// A block that is not reported changes the table as one that is.
func TestStoppedReport(t *testing.T) {
	block := unhex(t, "4001 61 01 62 4001 63 01 64 8286")
	for after := range 4 {
		var d Decoder
		calls := 0
		if err := d.Decode(block, func(_, _ []byte, _ bool) bool { calls++; return calls <= after }); err != nil {
			t.Fatal(err)
		}
		if calls != after+1 {
			t.Errorf("%d calls, want %d", calls, after+1)
		}
		if got, want := d.table.dump(), (list{"c: d", "a: b"}); !slices.Equal(got, want) {
			t.Errorf("table %q, want %q", got, want)
		}
	}
}

func TestScratchIsNotKeptWhenLarge(t *testing.T) {
	var d Decoder
	block := appendText([]byte{0x00, 1, 'a'}, []byte(strings.Repeat("0", 64<<10)))
	decode(t, &d, block)
	if cap(d.scratch) > mostScratch {
		t.Errorf("keeps %d bytes", cap(d.scratch))
	}
}
