package floors

import (
	"go/ast"
	"strings"
)

// allowance stands before a sleep that waits for nothing, with the reason of it:
//
//	time.Sleep(step) //weft:sleep the client is slow on purpose
const allowance = "//weft:sleep "

// sleeps finds time.Sleep in tests that hope that something is over by then: too
// short on a busy machine, too long everywhere else. What stays allowed:
//
//   - fake time: inside synctest.Test, or in a function that calls synctest.Wait;
//   - polling: in a loop that looks at the clock, or at its context, to give up;
//   - with an allowance on its line or the line before.
func (t *tree) sleeps() (found []string) {
	for _, f := range t.files {
		if !f.test {
			continue
		}
		allowed := t.allowances(f)
		var above []ast.Node
		ast.Inspect(f.File, func(n ast.Node) bool {
			if n == nil {
				above = above[:len(above)-1]
				return true
			}
			above = append(above, n)
			line := t.set.Position(n.Pos()).Line
			if isCall(n, "time", "Sleep") && !harmless(above) && !allowed[line] && !allowed[line-1] {
				found = append(found, t.at(n.Pos(), "sleeps: wait for the thing itself, poll until a deadline, use fake time (testing/synctest), or write %swhy", allowance))
			}
			return true
		})
	}
	return found
}

// allowances are the lines with an allowance that gives a reason.
func (t *tree) allowances(f source) map[int]bool {
	lines := make(map[int]bool)
	for _, group := range f.Comments {
		for _, c := range group.List {
			if why, ok := strings.CutPrefix(c.Text, allowance); ok && strings.TrimSpace(why) != "" {
				lines[t.set.Position(c.Pos()).Line] = true
			}
		}
	}
	return lines
}

func harmless(above []ast.Node) bool {
	for _, n := range above {
		switch n := n.(type) {
		case *ast.CallExpr:
			if isCall(n, "synctest", "Test") {
				return true
			}
		case *ast.FuncDecl:
			if has(n, "synctest", "Wait") {
				return true
			}
		case *ast.ForStmt:
			if has(n, "time", "Now") || has(n, "time", "Since") || has(n, "time", "Until") || has(n, "", "Err") {
				return true
			}
		}
	}
	return false
}

// has says whether name.method() is called somewhere in n.
func has(n ast.Node, name, method string) (yes bool) {
	ast.Inspect(n, func(n ast.Node) bool {
		yes = yes || isCall(n, name, method)
		return !yes
	})
	return yes
}

// isCall says whether n is a call of name.method; "" is any name.
func isCall(n ast.Node, name, method string) bool {
	call, ok := n.(*ast.CallExpr)
	if !ok {
		return false
	}
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != method {
		return false
	}
	x, ok := sel.X.(*ast.Ident)
	return name == "" || ok && x.Name == name
}
