package http2

import "testing"

// A peer with large windows reads what it was sent long ago, in pieces of 4 KiB as
// net/http does, while nothing new is sent to it: also behind the stream's end.
func TestWindowsAreOpenedLate(t *testing.T) {
	const body, piece = 4 << 20, 4 << 10
	for _, end := range []bool{false, true} {
		c := New(Config{Server: true})
		var s *Stream
		feed := func(b []byte) error {
			for len(b) > 0 {
				n, e, err := c.Receive(b)
				if err != nil {
					return err
				}
				if e.New {
					s = e.Stream
				}
				if n == 0 && e.Kind == None {
					t.Fatalf("%d bytes are left", len(b))
				}
				b = b[n:]
			}
			return nil
		}
		in := append([]byte(preface), appendFrame(nil, settingLen, frameSettings, 0, 0)...)
		in = appendSetting(in, settingWindow, body)
		in = appendWindowUpdate(in, 0, 1<<30)
		in = appendFrame(in, 6, frameHeaders, flagEndHeaders|flagEndStream, 1)
		in = append(in, 0x82, 0x86, 0x84, 0x41, 1, 'a') // GET http://a/
		if err := feed(in); err != nil || s == nil {
			t.Fatal(s, err)
		}
		c.SendResponse(s, 200, nil, false)
		if n := c.SendData(s, make([]byte, body), end); n != body {
			t.Fatalf("%d bytes fit", n)
		}
		for i := range body / piece {
			if err := feed(appendWindowUpdate(appendWindowUpdate(nil, 0, piece), 1, piece)); err != nil {
				t.Fatalf("end %v, after %d pieces: %v", end, i, err)
			}
		}
		var err error // there is nothing left to read
		for range 2000 {
			if err = feed(appendWindowUpdate(nil, 1, piece)); err != nil {
				break
			}
		}
		if broken, ok := err.(*ConnError); !ok || broken.Reason != "window_update_flood" {
			t.Errorf("end %v: windows for nothing: %v", end, err)
		}
	}
}
