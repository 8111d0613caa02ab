package node

import (
	"context"
	"errors"
	"os"
	"runtime/debug"
	"sync"
	"syscall"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/node/handover"
)

// application is what a sidecar stands beside.
type application interface {
	id() int                 // 0 when it is not known
	exited() <-chan struct{} // closed when it has ended; nil when nobody will know
	end() int                // asks it to end, waits, and returns its exit code
}

// keeper is what is left of a process that has stayed after it was replaced: the
// parent of the application, which holds the leash of the data plane.
type keeper struct {
	// constant
	process *Process
	app     application // nil: there is none
	leash   *handover.Leash

	// of the goroutine that runs run
	pids []int // of data planes that were children of this process, or may become it
	last int   // the one that serves
	bye  bool
	code int // with bye
}

// run ends when the data plane has. stop makes both end politely. It returns the
// application's exit code, or the data plane's when there is none.
func (k *keeper) run(stop context.Context, drained <-chan struct{}) (int, error) {
	words := make(chan handover.Word)
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(words)
		for w, err := k.leash.Hear(); err == nil; w, err = k.leash.Hear() {
			words <- w // until the end, somebody reads
		}
	})
	defer reading.Wait()
	defer k.leash.Close()
	stopped := stop.Done()
	var exited <-chan struct{}
	if k.app != nil {
		exited = k.app.exited()
	}
	ending := false
	for {
		if ending && drained == nil { // what this process had in flight has ended, too
			ending, exited = false, nil
			k.say(handover.Word{Exited: true, Code: k.app.end()})
		}
		select {
		case <-drained:
			drained = nil
			debug.FreeOSMemory() // what served is not needed any more
		case <-stopped:
			stopped = nil
			k.say(handover.Word{Stop: true})
		case <-exited:
			exited = nil
			k.say(handover.Word{Exited: true, Code: k.app.end()})
		case r := <-k.process.requests:
			r.reply <- handover.Reply{Ask: k.last}
		case w, open := <-words:
			if !open {
				return k.ended()
			}
			ending = ending || w.End && k.app != nil
			k.heard(w)
		}
	}
}

func (k *keeper) heard(w handover.Word) {
	k.reap()
	if w.PID != 0 && w.PID != k.last {
		k.last = w.PID
		k.pids = append(k.pids, w.PID)
	}
	if w.Bye {
		k.bye, k.code = true, w.Code
	}
}

// say passes a word on. When nobody is there, Hear says so.
func (k *keeper) say(w handover.Word) {
	if err := k.leash.Say(w); err != nil {
		k.process.logger.Debug("the data plane does not listen", "error", err)
	}
}

// ended comes after the data plane: the application does not go on without it, no
// more than it does when a sidecar is killed that has it as its child.
func (k *keeper) ended() (code int, err error) {
	code = k.code
	if k.app != nil {
		code = k.app.end()
	}
	k.reap()
	if !k.bye {
		return 1, weft.Errorf(weft.Unavailable, "run", "data plane", "process %d ended without a word", k.last)
	}
	return code, nil
}

// reap takes the exit codes of data planes that are children of this process, or
// have become so. Nobody wants them.
func (k *keeper) reap() {
	for _, pid := range k.pids {
		_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil) // ECHILD: it is somebody else's
	}
}

// led is the other end of the leash: that of the process which serves. For a sidecar
// it stands for the application, whose parent the other process is.
type led struct {
	// constant
	leash *handover.Leash
	stop  context.CancelFunc // ends the tenure
	pid   int                // of the application

	over    chan struct{} // closed when the application has ended, or its parent
	code    int           // set before over is closed
	once    sync.Once
	reading sync.WaitGroup
}

func newLed(l *handover.Leash, stop context.CancelFunc) *led {
	d := &led{leash: l, stop: stop, over: make(chan struct{})}
	d.resume()
	return d
}

// read follows the leash until it ends or is paused. Its end means that the parent
// was killed, and with it the application.
func (d *led) read() {
	for {
		w, err := d.leash.Hear()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return
		case err != nil:
			d.ended(1)
			d.stop()
			return
		}
		if w.Exited {
			d.ended(w.Code)
		}
		if w.Stop {
			d.stop()
		}
	}
}

func (d *led) ended(code int) {
	d.once.Do(func() {
		d.code = code
		close(d.over)
	})
}

// pause stops reading: what is said from now on is for another process, or for
// after resume.
func (d *led) pause() {
	d.leash.Pause()
	d.reading.Wait()
}

func (d *led) resume() {
	d.leash.Resume()
	d.reading.Go(d.read)
}

func (d *led) close() {
	d.leash.Close()
	d.reading.Wait()
}

// say tells the parent. When it is gone, read notices.
func (d *led) say(w handover.Word) { _ = d.leash.Say(w) }

func (d *led) id() int { return d.pid }

func (d *led) exited() <-chan struct{} { return d.over }

func (d *led) end() int {
	d.say(handover.Word{End: true})
	<-d.over // the parent kills what does not end by itself
	return d.code
}
