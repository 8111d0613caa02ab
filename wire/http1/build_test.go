package http1

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// build builds a request from lines: ":method GET" and so on, and "name: value".
// The bytes that it hands out are overwritten behind it.
func build(r *Request, body bool, lines ...string) error {
	r.Reset()
	for _, line := range lines {
		pseudo, text, _ := strings.Cut(line, " ")
		name, value, _ := strings.Cut(line, ": ")
		n, v, arg := []byte(name), []byte(value), []byte(text)
		var err error
		switch pseudo {
		case ":method":
			err = r.SetMethod(arg)
		case ":scheme":
			err = r.SetScheme(arg)
		case ":authority":
			err = r.SetAuthority(arg)
		case ":path":
			err = r.SetTarget(arg)
		default:
			err = r.Add(n, v)
		}
		for _, used := range [][]byte{n, v, arg} {
			copy(used, strings.Repeat("!", len(used)))
		}
		if err != nil {
			return err
		}
	}
	return r.Finish(body)
}

func lines(s string) []string { return strings.Split(s, "\n") }

const plainBuild = ":method GET\n:scheme https\n:authority shop:8443\n:path /a?b"

func TestBuiltRequest(t *testing.T) {
	for _, c := range []struct {
		name  string
		body  bool
		lines string
		want  []string
	}{
		{"a plain one", false, plainBuild + "\naccept: */*", []string{"method GET", "scheme https", "authority shop:8443",
			"target /a?b", "path /a", "query b", "hasquery true", "form origin", "minor 1", "framing none", "length -1",
			"keepalive true", "kept accept", "dropped "}},
		{"a body of unknown length", true, plainBuild, []string{"framing chunked", "length -1"}},
		{"a body of known length", true, plainBuild + "\ncontent-length: 5", []string{"framing fixed", "length 5", "dropped content-length"}},
		{"an empty body that is announced", false, plainBuild + "\ncontent-length: 0", []string{"framing fixed", "length 0"}},
		{"an empty body that ends later", true, plainBuild + "\ncontent-length: 0", []string{"framing fixed", "length 0"}},
		{"a length, and the end", false, plainBuild + "\ncontent-length: 5", []string{"400 length_mismatch"}},
		{"two lengths", true, plainBuild + "\ncontent-length: 5\ncontent-length: 5", []string{"400 duplicate_cl"}},
		{"a length that is none", true, plainBuild + "\ncontent-length: +5", []string{"400 bad_cl"}},
		{"a length beyond all", true, plainBuild + "\ncontent-length: 9223372036854775808", []string{"413 huge_cl"}},

		{"Host in place of the authority", false, ":method GET\n:path /\nhost: a:1", []string{"authority a:1", "kept host"}},
		{"Host that agrees", false, plainBuild + "\nhost: SHOP:8443", []string{"authority shop:8443", "dropped host"}},
		{"Host that does not", false, plainBuild + "\nhost: shop", []string{"400 host_mismatch"}},
		{"an empty Host beside the authority", false, plainBuild + "\nhost: ", []string{"400 host_mismatch"}},
		{"two Hosts", false, plainBuild + "\nhost: shop:8443\nhost: shop:8443", []string{"400 duplicate_host"}},
		{"no host at all", false, ":method GET\n:path /", []string{"400 missing_host"}},
		{"an empty Host", false, ":method GET\n:path /\nhost: ", []string{"400 empty_host"}},
		{"a bad Host", false, ":method GET\n:path /\nhost: a/b", []string{"400 bad_host"}},
		{"an authority with user information", false, ":authority u@a", []string{"400 userinfo"}},
		{"an authority that ends the line", false, ":authority a\r\nX: y", []string{"400 bad_authority"}},
		{"an empty authority", false, ":authority ", []string{"400 bad_authority"}},

		{"no method", false, ":authority a\n:path /", []string{"400 bad_method"}},
		{"a method with a space", false, ":method GET /", []string{"400 bad_method"}},
		{"an empty method", false, ":method ", []string{"400 bad_method"}},
		{"a long method", false, ":method " + strings.Repeat("a", 65), []string{"501 method_too_long"}},
		{"no path", false, ":method GET\n:authority a", []string{"400 bad_target"}},
		{"an empty path", false, ":path ", []string{"400 bad_target"}},
		{"a path without slash", false, ":path a", []string{"400 bad_target"}},
		{"a path in absolute form", false, ":path http://a/", []string{"400 bad_target"}},
		{"a path with a space", false, ":path /a HTTP/1.1", []string{"400 bad_target"}},
		{"a path with a line end", false, ":path /a\r\n", []string{"400 bad_target"}},
		{"a path with a fragment", false, ":path /a#b", []string{"400 bad_target"}},
		{"a path beyond ASCII", false, ":path /\xff", []string{"400 bad_target"}},
		{"an unknown scheme", false, ":scheme ftp", []string{"400 bad_scheme"}},
		{"OPTIONS *", false, ":method OPTIONS\n:authority a\n:path *", []string{"form asterisk", "path *"}},
		{"* of another method", false, ":method GET\n:authority a\n:path *", []string{"400 asterisk_form"}},

		{"CONNECT", true, ":method CONNECT\n:authority a:443", []string{"form authority", "target a:443", "authority a:443", "path ", "framing none"}},
		{"CONNECT without port", true, ":method CONNECT\n:authority a", []string{"400 bad_authority"}},
		{"CONNECT without authority", true, ":method CONNECT", []string{"400 bad_authority"}},
		{"CONNECT with content", true, ":method CONNECT\n:authority a:1\ncontent-length: 1", []string{"400 connect_body"}},
		{"extended CONNECT", true, ":method CONNECT\n:scheme https\n:authority a\n:path /ws", []string{"form origin", "path /ws", "framing chunked"}},

		{"TE: trailers", false, plainBuild + "\nte: trailers", []string{"kept te"}},
		{"TE with more", false, plainBuild + "\nte: trailers, gzip", []string{"400 bad_te"}},
		{"Connection", false, plainBuild + "\nconnection: close", []string{"400 connection_field"}},
		{"Keep-Alive", false, plainBuild + "\nkeep-alive: 5", []string{"400 connection_field"}},
		{"Proxy-Connection", false, plainBuild + "\nproxy-connection: x", []string{"400 connection_field"}},
		{"Transfer-Encoding", true, plainBuild + "\ntransfer-encoding: chunked", []string{"400 connection_field"}},
		{"Upgrade", false, plainBuild + "\nupgrade: h2c", []string{"400 connection_field"}},
		{"Trailer stays behind", true, plainBuild + "\ntrailer: x", []string{"dropped trailer"}},
		{"Proxy-Authorization stays behind", true, plainBuild + "\nproxy-authorization: x", []string{"dropped proxy-authorization"}},
		{"doubles with underscores stay behind", false, plainBuild + "\nx_forwarded_for: a\nx_other: b", []string{"kept x_other", "dropped x_forwarded_for"}},
		{"100-continue", true, plainBuild + "\nexpect: 100-continue", []string{"expect true"}},
		{"100-continue without a body", false, plainBuild + "\nexpect: 100-continue", []string{"expect false"}},
		{"another expectation", true, plainBuild + "\nexpect: x", []string{"417 bad_expectation"}},

		{"cookie crumbs", false, plainBuild + "\ncookie: a=b\naccept: x\ncookie: c=d\ncookie: e\nx-a: y",
			[]string{"kept cookie accept x-a", "value:cookie a=b; c=d; e", "value:x-a y", "fields 3"}},
		{"empty crumbs", false, plainBuild + "\ncookie: \ncookie: a\ncookie: \ncookie: b\ncookie: ", []string{"value:cookie a; b"}},
		{"one cookie", false, plainBuild + "\ncookie: a=b", []string{"value:cookie a=b"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var r Request
			err := build(&r, c.body, lines(c.lines)...)
			wc := wireCase{want: c.want}
			wc.check(t, requestFacts(&r), err)
		})
	}
}

// What can be said in both forms is the same request, whichever way it came.
func TestBuiltIsAsParsed(t *testing.T) {
	compared := 0
	for _, c := range readCases(t, "testdata/requests.txt") {
		var parsed, built Request
		const others = 1<<FieldConnection | 1<<FieldKeepAlive | 1<<FieldTE | 1<<FieldUpgrade
		if _, err := parsed.Parse(c.wire, nil); err != nil || parsed.Minor == 0 || parsed.Form != Origin || parsed.has(others) {
			continue
		}
		compared++
		head := []string{":method " + string(parsed.Method), ":path " + string(parsed.Target)}
		for i := range parsed.Fields {
			if parsed.Fields[i].ID != FieldTransferEncoding {
				head = append(head, fmt.Sprintf("%s: %s", parsed.Name(i), parsed.Value(i)))
			}
		}
		if err := build(&built, parsed.Framing != NoBody, head...); err != nil {
			t.Errorf("%s: %v", c.title, err)
			continue
		}
		want, got := requestFacts(&parsed), requestFacts(&built)
		if parsed.Framing == Chunked {
			for _, key := range []string{"fields", "dropped", "value:transfer-encoding"} {
				delete(want, key)
				delete(got, key)
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: built\n%q\nparsed\n%q", c.title, got, want)
		}
		if string(built.AppendFields(nil)) != string(parsed.AppendFields(nil)) {
			t.Errorf("%s: wrote %q", c.title, built.AppendFields(nil))
		}
	}
	if compared < 15 {
		t.Errorf("only %d requests compared", compared)
	}
}

func TestAddRefuses(t *testing.T) {
	var h Head
	if err := h.Add([]byte("first"), []byte("kept")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, value, want string }{
		{"", "a", "400 empty_name"},
		{":path", "/", "400 bad_name"},
		{"a:b", "c", "400 bad_name"},
		{"a b", "c", "400 bad_name"},
		{"a\r\nb", "c", "400 bad_name"},
		{"a", "b\r\nc: d", "400 bad_value"},
		{"a", "b\rc", "400 bad_value"},
		{"a", "b\nc", "400 bad_value"},
		{"a", "b\x00", "400 bad_value"},
		{"a", "b\x7f", "400 bad_value"},
		{"a", " b", "400 bad_value"},
		{"a", "b\t", "400 bad_value"},
		{"a", " ", "400 bad_value"},
		{strings.Repeat("a", 1<<16), "b", "431 head_too_large"},
	} {
		err := h.Add([]byte(c.name), []byte(c.value))
		if err == nil || refusal(err) != c.want {
			t.Errorf("%.9q: %q: %v, want %s", c.name, c.value, err, c.want)
		}
	}
	for _, value := range []string{"", "a\tb c", "\xff", "é"} {
		if err := h.Add([]byte("a"), []byte(value)); err != nil {
			t.Errorf("%q: %v", value, err)
		}
	}
	if got := string(h.AppendFields(nil)); got != "first: kept\r\na: \r\na: a\tb c\r\na: \xff\r\na: é\r\n" {
		t.Errorf("built %q", got)
	}
}

func TestAddHasAnEnd(t *testing.T) {
	var h Head
	for range mostFields {
		if err := h.Add([]byte("a"), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Add([]byte("host"), nil); err == nil || refusal(err) != "431 too_many_fields" {
		t.Errorf("%v", err)
	}
	if h.Find(FieldHost) >= 0 || len(h.Fields) != mostFields {
		t.Error("the field was added")
	}
}

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "x-a_b.c!": true, "": false, "A": false, "content-Type": false, ":path": false, "a b": false, "a\x00": false, "\xff": false,
	} {
		if ValidName([]byte(name)) != want {
			t.Errorf("%q is valid: %v", name, !want)
		}
	}
}

// A large head moves its memory while it grows; what was set before stays.
func TestBuiltHeadGrows(t *testing.T) {
	var r Request
	head := lines(plainBuild)
	for i := range 90 {
		head = append(head, fmt.Sprintf("x-%d: %s", i, strings.Repeat("v", 20*i)))
	}
	if err := build(&r, false, head...); err != nil {
		t.Fatal(err)
	}
	if string(r.Method) != "GET" || string(r.Path) != "/a" || string(r.Query) != "b" || string(r.Authority) != "shop:8443" {
		t.Errorf("%s", r.snapshot())
	}
	for i := range 90 {
		if v, n := r.Lookup(fmt.Sprintf("X-%d", i)); n != 1 || string(v) != strings.Repeat("v", 20*i) {
			t.Errorf("x-%d is %q on %d lines", i, v, n)
		}
	}
	r.Reset()
	if cap(r.own) > ownBytes || len(r.Fields) != 0 {
		t.Errorf("keeps %d bytes, %d fields", cap(r.own), len(r.Fields))
	}
}

// One Request serves both ways in turn, and nothing stays from before.
func TestBuiltAndParsedInTurn(t *testing.T) {
	var used, parsed, built Request
	wire := []byte(typicalRequest)
	parseRequest(t, &parsed, typicalRequest)
	if err := build(&built, false, lines(plainBuild+"\nx-a: b")...); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := used.Parse(wire, nil); err != nil || used.snapshot() != parsed.snapshot() {
			t.Fatalf("parsed: %v\n%s", err, used.snapshot())
		}
		if err := build(&used, false, lines(plainBuild+"\nx-a: b")...); err != nil || used.snapshot() != built.snapshot() {
			t.Fatalf("built: %v\n%s", err, used.snapshot())
		}
		if _, err := used.Parse(wire[:len(wire)-5], nil); err != ErrIncomplete {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(wire, []byte(typicalRequest)) {
		t.Error("building wrote into the read buffer")
	}
	used.Parse(wire, nil)
	if err := used.Add([]byte("x"), []byte("y")); err != nil || len(used.Fields) != 1 || !bytes.Equal(wire, []byte(typicalRequest)) {
		t.Errorf("Add behind Parse left %d fields (%v)", len(used.Fields), err)
	}
}

func TestAddTrailer(t *testing.T) {
	var h Head
	h.Reset()
	for _, line := range lines("grpc-status: 0\ncontent-length: 5\nx-checksum: a\nhost: b\nset-cookie: c\nauthorization: d\nx_forwarded_for: e") {
		name, value, _ := strings.Cut(line, ": ")
		if err := h.AddTrailer([]byte(name), []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	if got := string(h.AppendFields(nil)); got != "grpc-status: 0\r\nx-checksum: a\r\n" {
		t.Errorf("kept %q", got)
	}
	if err := h.AddTrailer([]byte("a\n"), nil); err == nil {
		t.Error("accepted a line feed")
	}
}

func TestBuiltResponse(t *testing.T) {
	for _, c := range []struct {
		name, status, method string
		body                 bool
		fields               string
		want                 []string
	}{
		{"a plain one", "200", "GET", true, "content-type: x", []string{"status 200", "minor 1", "framing chunked", "length -1", "keepalive true", "kept content-type"}},
		{"a known length", "200", "GET", true, "content-length: 5", []string{"framing fixed", "length 5", "dropped content-length"}},
		{"no body", "200", "GET", false, "a: b", []string{"framing none", "length -1"}},
		{"a length, and the end", "200", "GET", false, "content-length: 5", []string{"502 length_mismatch"}},
		{"HEAD keeps the length", "200", "HEAD", false, "content-length: 5", []string{"framing none", "length 5"}},
		{"304 keeps the length", "304", "GET", false, "content-length: 5", []string{"framing none", "length 5"}},
		{"204 that ends later", "204", "GET", true, "a: b", []string{"framing none"}},
		{"interim", "103", "GET", true, "link: x", []string{"framing none", "kept link"}},
		{"CONNECT that succeeds", "200", "CONNECT", true, "a: b", []string{"framing none"}},
		{"CONNECT that fails", "403", "CONNECT", true, "a: b", []string{"framing chunked"}},
		{"101", "101", "GET", true, "a: b", []string{"502 bad_status"}},
		{"a status of two digits", "20", "GET", true, "a: b", []string{"502 bad_status"}},
		{"a status below 100", "099", "GET", true, "a: b", []string{"502 bad_status"}},
		{"a status with a sign", "+20", "GET", true, "a: b", []string{"502 bad_status"}},
		{"no status", "", "GET", true, "a: b", []string{"502 bad_status"}},
		{"two lengths", "200", "GET", true, "content-length: 5\ncontent-length: 5", []string{"502 duplicate_cl"}},
		{"Connection", "200", "GET", true, "connection: close", []string{"502 connection_field"}},
		{"set-cookie is not joined", "200", "GET", true, "set-cookie: a\nset-cookie: b", []string{"kept set-cookie set-cookie"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var r Response
			r.Parse([]byte("HTTP/1.0 101 Left\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"), nil, nil)
			r.Reset()
			err := error(nil)
			if c.status != "" {
				err = r.SetStatus([]byte(c.status))
			}
			for _, line := range lines(c.fields) {
				name, value, _ := strings.Cut(line, ": ")
				if err == nil {
					err = r.Add([]byte(name), []byte(value))
				}
			}
			if err == nil {
				err = r.Finish([]byte(c.method), c.body)
			}
			wc := wireCase{want: c.want}
			wc.check(t, responseFacts(&r), err)
		})
	}
}

func TestBuildingAllocatesNothing(t *testing.T) {
	var r Request
	var p Response
	var names, values [][]byte
	for _, line := range lines("accept: */*\nuser-agent: Mozilla/5.0 (X11; Linux x86_64)\ncookie: a=b\ncookie: c=d\nx-request-id: 1\nte: trailers") {
		name, value, _ := strings.Cut(line, ": ")
		names, values = append(names, []byte(name)), append(values, []byte(value))
	}
	method, scheme, authority, path, status := []byte("GET"), []byte("https"), []byte("shop:8443"), []byte("/a?b"), []byte("200")
	if n := testing.AllocsPerRun(100, func() {
		r.Reset()
		r.SetMethod(method)
		r.SetScheme(scheme)
		r.SetAuthority(authority)
		r.SetTarget(path)
		p.Reset()
		p.SetStatus(status)
		for i := range names {
			r.Add(names[i], values[i])
			p.AddTrailer(names[i], values[i])
		}
		if r.Finish(true) != nil || p.Finish(method, true) != nil {
			t.Error("refused")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzBuild builds a request of anything; what is taken is read back as it was
// given, by Parse and so by any server.
func FuzzBuild(f *testing.F) {
	f.Add("GET", "/a?b", "a:1", "x-a\ncookie\ncookie", "b\nc\nd", false)
	f.Add("POST", "/", "a", "content-length\nhost", "5\na", true)
	f.Add("CONNECT", "", "a:1", "te", "trailers", true)
	f.Fuzz(func(t *testing.T, method, target, authority, names, values string, body bool) {
		var r Request
		r.Reset()
		if r.SetMethod([]byte(method)) != nil || r.SetAuthority([]byte(authority)) != nil ||
			target != "" && r.SetTarget([]byte(target)) != nil {
			return
		}
		n, v := lines(names), lines(values)
		var want []string
		for i := range min(len(n), len(v), 50) {
			if r.Add([]byte(n[i]), []byte(v[i])) != nil {
				continue
			}
			if last := len(r.Fields) - 1; !r.Fields[last].Drop && r.Fields[last].ID != FieldCookie && r.Fields[last].ID != FieldHost && r.Fields[last].ID != FieldTE {
				want = append(want, n[i]+": "+v[i])
			}
		}
		if r.Finish(body) != nil {
			return
		}
		var got []string
		for i := range r.Fields {
			if !r.Fields[i].Drop && r.Fields[i].ID != FieldCookie && r.Fields[i].ID != FieldHost && r.Fields[i].ID != FieldTE {
				got = append(got, fmt.Sprintf("%s: %s", r.Name(i), r.Value(i)))
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("holds %q, want %q", got, want)
		}
		if string(r.Method) != method || string(r.Authority) != authority {
			t.Fatalf("%s", r.snapshot())
		}
		if method == "CONNECT" && r.Form != Authority {
			return // extended: HTTP/1 has no such request
		}
		checkRequestRoundTrip(t, &r)
	})
}
