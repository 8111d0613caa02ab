// Package h2spec judges weft's HTTP/2 from outside: every case of
// github.com/summerwind/h2spec, the strict ones too, is asked of each door at which
// weft is a server, and h2spec's client cases of each place where weft is a client.
//
// testdata/disagreements.txt has the cases with which weft disagrees on purpose,
// each with the sentence of RFC 9113 that decides. A case on the list must fail: a
// list that is out of date fails the test.
package h2spec
