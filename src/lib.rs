//! PGHoard, the PostgreSQL backup appliance: a map of the code.
//!
//! ```text
//!             DATA goes one way
//!   PostgreSQL --> source --> spool --> codec --> store
//!                    |          |                   |
//!             FACTS  v          v                   v          every step reports an Event
//!               +-----------------------------------------+
//!               | journal: append (redb, fsync) --> fold  |--> publish, serve: files, HTTP
//!               +-----------------------------------------+
//!                                  | State (pure)
//!                                  v
//!                     decide(state, policy, busy, now)          pure, level-triggered
//!                                  | Tasks
//!                                  +--> work: store, delete, reconcile, take a basebackup ...
//!
//!   restore <-- store          (needs only the store and a config file; never the log)
//! ```
//!
//! Four sentences carry the design. Append, fold, decide, do is the only loop there is. decide
//! looks at the state, not at what just happened, so a restart is an ordinary turn. The store is
//! the truth about backups, the log is the truth about our work. Rebuilding from a listing and
//! adopting a bucket that PGHoard filled use the same events.
//!
//! Begin with `machine::event` (everything that can happen), `machine::decide` (everything we ever
//! do, and when) and [`journal::run`] (the only loop).
//!
//! # Folders
//!
//! - `machine/` (a crate of its own, `no_std`): every judgement, as data and functions: names and
//!   positions of WAL, events, projections, rules, decide. The compiler keeps effects out.
//! - [`journal`]: the log in redb, its encoding and digest chain, the loop, what a start does.
//! - [`pg`]: speaking PostgreSQL: connection strings, authentication, TLS, the replication
//!   protocol, its files.
//! - [`source`]: bytes in: the WAL stream, base backups, looks at servers.
//! - [`spool`]: WAL between PostgreSQL and the store, one file an entry.
//! - [`codec`]: compress and encrypt, both ways; keys and digests.
//! - [`store`]: object stores behind one contract: `local`, `sftp`, the clouds in `cloud/` and
//!   `google/`, and `wire/`, the HTTP below them.
//! - [`work`]: tasks that touch the store, once each: upload, delete, reconcile, verify, export.
//! - [`daemon`]: the real world around the loop: threads, signals, what a configuration means.
//! - [`publish`]: state into alert files, the state file and metrics. [`serve`]: the HTTP API.
//! - [`restore`]: the way back, from the store alone.
//! - [`config`]: JSON into checked types. [`tool`]: one file or folder a command; two that share
//!   their beginning are in `archive/`.
//! - [`http`] asks the daemon and a pushgateway, [`tls`] verifies and shows certificates.
//! - [`durable`] writes every file that must survive, [`clock`] asks for the time, [`failure`] is
//!   the one error, [`report`] the log lines.
//!
//! # Who may use whom
//!
//! `machine` uses nothing, and everybody its types. The rest by name; who is not in a line is not
//! used there, `mod tests` excepted. `tests/tidy` reads this block and holds the code to it.
//!
//! ```text
//! everybody: clock durable failure report
//! clock:
//! durable:
//! failure:
//! report:    config publish        (the level of the log, times as text)
//! tls:
//! pg:        tls
//! codec:     store                 (the metadata of an object)
//! http:      config tls            (the daemon's address and login)
//! store:     config                (which store to open)
//! config:    codec                 (names of algorithms, keys)
//! spool:
//! source:    codec pg spool store
//! work:      codec pg restore spool store   (it judges objects as their readers do)
//! journal:   spool
//! publish:   config http tls       (where metrics go)
//! restore:   codec config pg spool store   (the name of the spool's folder)
//! serve:     config journal publish restore source spool store tls work
//! daemon:    codec config journal pg publish serve source spool store work
//! tool:      codec config daemon http journal pg publish restore serve source store tls work
//! ```
//!
//! Facts come to `source` and `work` as arguments. `journal` alone names redb and serde_cbor, each
//! in one file. `restore` knows neither the journal nor the state. Nothing uses `tool`.
//!
//! # Invariants
//!
//! The simulator (`tests/sim`) checks these after every step.
//!
//! 1. Nothing outside sees a result before its event is committed (a `spooled` acknowledgement is
//!    proved by the synced partial file).
//! 2. The flush position sent never exceeds the frontier, and every segment below it is stored, or
//!    was deleted by retention. The frontier only moves forward.
//! 3. A spool file disappears only after its own `Stored` or `Dropped` is committed.
//! 4. A backup's main object is written last, after its parts and the WAL that makes it consistent,
//!    and deleted first: any listing, at any instant, shows only whole backups. An object that is
//!    all of a backup is written before that WAL is there, and becomes visible after it.
//! 5. No WAL is deleted that a backup whose main object still exists, or a running one, needs.
//! 6. Same name, same content, or a conflict: nothing stored is ever replaced, but for what is
//!    proven to be damaged, by what it was.
//! 7. The fold is total. Unknown kinds marked critical stop the daemon; others are skipped.
//! 8. decide, asked twice with nothing new, answers nothing new.
//! 9. Every task can be repeated, killed, or have succeeded while reporting failure.
//! 10. Nothing is destroyed in a site before this log has seen a listing of its store.
//! 11. Losing the log never changes the set of restorable backups.
//! 12. Only restorable backups count for retention; the newest of them is never expired, neither of
//!     a site and its history together nor of the active site alone.
//! 13. Restore depends on neither journal nor state.
//! 14. WAL of another cluster (system identifier) never enters a site; a log that begins anew
//!     learns from the store which one is its own.
//! 15. Once faults end, everything wanted is stored and the frontier follows the server.
//! 16. The summary of any state folds to it, and no event leaves the log before the store of every
//!     active site holds it (unless exporting is off).
//!
//! # Architecture notes: where building taught us otherwise
//!
//! - Parts of a basebackup do not pass through the spool. They are encoded as they come and go
//!   from a scratch file into the store; a crash costs the backup that was running, never more,
//!   and a cluster's worth of raw bytes is written once less. Only the main object is spooled: it
//!   waits there for the WAL that makes the backup consistent.
//! - A backup in one object (`basic`, `pipe`) is held back by its upload, which is finished only
//!   when its WAL is stored: every store can keep an object invisible until its last request, not
//!   all can rename one. Whoever takes it waits meanwhile, and a restart takes it anew, unless a
//!   listing shows that it was finished.
//! - There is no `Complete` and no `Drop` task. Storing the main object is the ordinary `Store`,
//!   which decide holds back; an unwanted main object is let go by recording `Dropped`.
//! - A file leaves the spool as the effect of its committed `Stored`, inside the loop. Sealing is
//!   create-exclusive, so no new file can have taken the name meanwhile.
//! - A segment that `archive_command` hands over under `ack: stored` is an entry of the spool
//!   without a file: PostgreSQL keeps it until it is stored, a copy would buy nothing. It counts
//!   as long as its name in `pg_wal` leads to the file that was opened; the answer waits for that
//!   very entry, and a restart lets the entry go, for PostgreSQL asks again.
//! - A dead backup stays in the state until its objects were removed, blindly: a part or main
//!   object whose put failed may be there all the same.
//! - A log that begins anew asks no server, receives and stores nothing until the store was listed
//!   or could not be: only the store knows whose WAL it holds. Where it cannot be reached the first
//!   server that answers counts, until the store says otherwise.
//! - A stream that begins beyond the frontier passes over what its server lost. Whether a restore
//!   misses that is computed from the state, as every hole is; it is sought on every server, then
//!   in `pg_wal`, and where nobody has it a new basebackup is due and the alert stays until a
//!   person takes note.
//! - `archive_command` has no stream that goes back: where segments enough beyond a gap are stored,
//!   PostgreSQL went on without it (`wal_passed`), and the frontier does as well. Which timeline
//!   such a site is on says the newest segment that was handed over.
//! - A stream without a slot would lose what is on its way to the checkpoint with which a backup
//!   begins. Whoever takes the backup has the server keep it by a temporary slot until then.

pub mod clock;
pub mod codec;
pub mod config;
pub mod daemon;
pub mod durable;
pub mod failure;
pub mod http;
pub mod journal;
pub mod pg;
pub mod publish;
pub mod report;
pub mod restore;
pub mod serve;
pub mod source;
pub mod spool;
pub mod store;
pub mod tls;
pub mod tool;
pub mod work;

pub use failure::{Failure, Outcome};
