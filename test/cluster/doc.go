// Package cluster judges three servers (and five) from outside: the real program,
// processes of its own, sockets, and clients of the Consul API. Its tests kill, stop
// and cut off servers while clients write, and take about a minute in all:
//
//   - one server grows to three while clients read and write without a failed call;
//   - the leader is killed, or stopped and resumed; a follower is; all of them are: no
//     acknowledged write is lost, no lease lapses for a server's own pause, nothing old
//     is answered as consistent, locks outlive it;
//   - a member is cut off by taking it off the bridge that joins the servers' network
//     namespaces. That needs root; without it these tests are skipped and say so;
//   - members are removed and join again; a backup under load is restored; two of five
//     are killed at once;
//   - what is set up wrongly is refused with the thing, the place and the mend.
//
// The soak does the same at random, for minutes, one fault at a time:
//
//	make soak                    three minutes, after the soak of proxies
//	CLUSTER_SOAK=10m CLUSTER_SOAK_SEED=7 make soak
//
// Every operation of its clients is recorded with its call and its return, those of
// unknown outcome without a return, and the history is checked for linearizability:
// keys (put, delete, compare-and-set, consistent get) and instances (register,
// deregister, consistent read of their service) are registers. Stale reads of one
// server never go back. A history that is not linearizable is drawn as a page of HTML
// that the test names. What that checking is worth, TestTheJudge says.
package cluster
