package floors

import (
	"slices"
	"strings"
)

// judge tells why the package in folder may not import path; "" when it may. test
// says that the file is a test.
func judge(folder, path string, test bool) string {
	from, ok := roomOf(folder)
	if !ok {
		return "" // homeless tells it once
	}
	inside, own := strings.CutPrefix(path+"/", module+"/")
	if !own {
		return judgeLibrary(from, folder, path, test)
	}
	target := strings.TrimSuffix(inside, "/")
	if target == "" {
		target = "."
	}
	to, ok := roomOf(target)
	switch {
	case target == folder: // the external tests of a package
		return ""
	case !ok:
		return "no such room"
	case from.floor == beside:
		return ""
	case to.floor == beside && test && to.tests:
		return ""
	case to.floor == beside:
		return "what is shipped does not need what builds and tests it"
	case test && (to.floor <= from.floor || folder != "." && under(folder, target)):
		return "" // a room is tested with what stands in its own folder
	}
	for _, d := range doors {
		if covers(d.from, folder) && covers(d.to, target) {
			return ""
		}
	}
	return judgeRooms(from, to, folder, target)
}

// judgeRooms is judge for shipped code that imports another room of the house.
func judgeRooms(from, to room, folder, target string) string {
	for _, w := range walls {
		if covers(w.from, folder) && covers(w.to, target) {
			return w.why
		}
	}
	switch {
	case to.floor > from.floor:
		return up[from.floor]
	case to.at == from.at && from.family:
		return ""
	case from.only != nil && !coversAny(from.only, target):
		return from.onlyWhy
	case to.floor == from.floor:
		return sideways[from.floor]
	case from.floor == mechanisms:
		return up[mechanisms] // not even the nouns
	}
	return ""
}

func judgeLibrary(from room, folder, path string, test bool) string {
	if path == "C" {
		return "weft is built by the Go tool alone, and is one static binary"
	}
	if test || from.floor == beside {
		return ""
	}
	for _, p := range promises {
		if covers(p.room, folder) && slices.Contains(p.not, path) {
			return p.why
		}
	}
	var kept keeper
	for _, k := range keepers {
		if under(k.library, path) && len(k.library) > len(kept.library) {
			kept = k
		}
	}
	if kept.library != "" {
		if coversAny(kept.rooms, folder) {
			return ""
		}
		return kept.why
	}
	if first, _, _ := strings.Cut(path, "/"); from.floor <= mechanisms && strings.Contains(first, ".") {
		return "nouns and mechanisms stand on the standard library alone, so that they can be used, and kept, for long"
	}
	return ""
}

// roomOf finds the row that is written for folder alone, or else the one with the
// longest match.
func roomOf(folder string) (best room, ok bool) {
	for _, r := range plan {
		if r.at == folder {
			return r, true
		}
		if covers(r.at, folder) && len(r.at) > len(best.at) {
			best, ok = r, true
		}
	}
	return best, ok
}

// covers says whether a pattern of the plan stands for folder.
func covers(pattern, folder string) bool {
	if all, ok := strings.CutSuffix(pattern, "/..."); ok {
		return under(all, folder)
	}
	return pattern == folder
}

func coversAny(patterns []string, folder string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return covers(p, folder) })
}

// under says whether path is prefix or beneath it.
func under(prefix, path string) bool {
	return path == prefix || strings.HasPrefix(path, prefix+"/")
}

// short leaves the module's own path out.
func short(path string) string {
	if path == module {
		return "the nouns"
	}
	return strings.TrimPrefix(path, module+"/")
}
