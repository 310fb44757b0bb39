//! What happens to a site: to its cluster, its store, its log, its clock, and what people do.

use machine::event::Why;
use machine::projection::marks::Mark;
use machine::rule::holes;
use machine::{BackupName, Event, File, Millis, State, Task};
use pghoard::work::marks;

use super::answers::Answers;
use super::oracle::Before;
use super::shelf::{PREFIX, SIZE};
use super::{DAY_MS, HOUR_MS, Life, site, site_policy};

impl Life {
    pub fn happen(&mut self) {
        let what = self.fate.below(100);
        self.happens(what);
    }

    pub fn happens(&mut self, what: u64) {
        self.fate.say(|| format!("  happens: {what}"));
        match what {
            0..42 => self.cluster.write(self.fate.between(1, 5), self.now_ms),
            42..47 => self.cluster.branch(self.cluster.at),
            47..50 => {
                let back = self.fate.below(4);
                let begin = self.cluster.segment(self.cluster.at).number;
                self.cluster
                    .branch(begin.saturating_sub(back).max(self.cluster.floor));
            }
            50..56 => self.recycle(),
            56..60 => self.lose(),
            60..63 => self.meddle(),
            63..67 => self.hold(),
            67..70 => self.release(),
            70..73 => self.ask(),
            73..77 => {
                let drawn = site_policy(&self.fate);
                self.policy.sites.insert(site(), drawn);
                self.spoilt.clear();
            }
            77..80 => self.restart(),
            80..84 => self.lose_log(),
            84..86 => self.set_clock(0),
            86..88 => {
                let days = i64::try_from(self.fate.below(800)).unwrap() - 400;
                self.set_clock(days * i64::try_from(DAY_MS).unwrap());
            }
            88..91 => self.upgrade(),
            91..94 => self.damage(),
            94..95 => self.forgive(),
            95..97 => self.acknowledge(),
            97..99 => self.keys.rotate(),
            _ => self.lose_key(),
        }
    }

    /// Another cluster answers at the address, or the old one again; the log may go with it.
    fn upgrade(&mut self) {
        self.cluster.system_id = if self.fate.chance(500) { 7 } else { 8 };
        if self.fate.chance(500) {
            self.lose_log();
        }
    }

    fn set_clock(&mut self, skew_ms: i64) {
        let by_ms = skew_ms - self.skew_ms;
        self.skew_ms = skew_ms;
        if by_ms != 0 {
            self.log(None, Event::ClockJumped { by_ms });
        }
    }

    fn recycle(&mut self) {
        let frontier = self.ours().ledger.frontier;
        let promised = self.fate.chance(800);
        let keep = frontier
            .filter(|_| promised)
            .map_or(self.cluster.at, |f| f.number + 1);
        self.cluster.floor = self.cluster.floor.max(keep.min(self.cluster.at));
    }

    /// One of the objects whose key has this in it.
    fn drawn(&self, part: &str) -> Option<String> {
        let truth = self.shelf.truth();
        let keys = truth.objects.keys().filter(|key| key.contains(part));
        let keys: Vec<_> = keys.collect();
        let place = self.fate.below(u64::try_from(keys.len()).unwrap());
        keys.get(usize::try_from(place).unwrap())
            .map(|key| (*key).clone())
    }

    fn lose(&mut self) {
        if let Some(key) = self.drawn("") {
            self.remove(&key, "the store loses");
        }
    }

    fn remove(&mut self, key: &str, how: &str) {
        self.fate.say(|| format!("    {how} {key}"));
        self.shelf.truth().objects.remove(key);
        (self.unlisted, self.unread) = (true, true);
        // What is lost within an hour of a listing is still counted on; that much is promised.
        self.pass(HOUR_MS);
    }

    /// A person removes a backup by the bucket's own tools, or not quite all of it.
    fn meddle(&mut self) {
        let Some(main) = self.drawn("/basebackup/") else {
            return;
        };
        let name = main.trim_start_matches("main/basebackup/").to_owned();
        let truth = self.shelf.truth();
        let chunks = truth.objects.keys();
        let chunks: Vec<_> = chunks
            .filter(|key| key.contains(&format!("/basebackup_chunk/{name}/")))
            .cloned()
            .collect();
        drop(truth);
        let (with_main, with_chunks) = (self.fate.chance(700), self.fate.chance(700));
        if with_main {
            self.remove(&main, "a person removes");
        }
        for key in chunks.iter().filter(|_| with_chunks) {
            if self.fate.chance(700) {
                self.remove(key, "a person removes");
            }
        }
    }

    /// By another program: the daemon has to read it from the store.
    fn hold(&mut self) {
        let names: Vec<_> = self.shelf.truth().needs.keys().cloned().collect();
        let place = self.fate.below(u64::try_from(names.len()).unwrap());
        let Some(backup) = names.get(usize::try_from(place).unwrap()) else {
            return;
        };
        let forever = self.fate.chance(500);
        let days = self.fate.between(1, 60);
        self.mark(Mark::Hold {
            backup: BackupName(backup.0.clone()),
            reason: "an audit".into(),
            by: "ada".into(),
            until: (!forever).then(|| Millis(self.now_ms + days * DAY_MS)),
        });
    }

    fn mark(&mut self, mark: Mark) {
        self.fate.say(|| format!("    {mark:?}"));
        drop(marks::write(&self.place, mark, SIZE));
        self.unread = true;
    }

    fn release(&mut self) {
        let objects = &mut self.shelf.truth().objects;
        objects.retain(|key, _| !key.contains("/preservation_request/"));
        self.unread = true;
    }

    /// A person takes note of a hole.
    fn acknowledge(&mut self) {
        let found = holes::holes(&self.ours());
        let place = self.fate.below(u64::try_from(found.len()).unwrap());
        if let Some(found) = found.get(usize::try_from(place).unwrap()) {
            self.mark(Mark::HoleAcknowledged {
                hole: found.hole.clone(),
                reason: "known".into(),
                by: "ada".into(),
                at: Millis(self.now_ms),
            });
        }
    }

    /// The disk lies: the object is there and holds something else.
    fn damage(&mut self) {
        let folder = ["/xlog/", "/basebackup", "/timeline/"];
        let place = usize::try_from(self.fate.below(3)).unwrap();
        if let Some(key) = self.drawn(folder[place])
            && self.shelf.truth().damage(&key)
        {
            self.fate.say(|| format!("    {key} is damaged"));
        }
    }

    /// A person takes a verdict back, right or wrong.
    fn forgive(&mut self) {
        if let Some(key) = self.drawn("/mark/damaged_") {
            self.remove(&key, "a person removes");
        }
    }

    fn ask(&mut self) {
        let reason = Why::Operator;
        self.tell(Event::BackupRequested { reason });
    }

    fn restart(&mut self) {
        self.busy.clear();
        self.next = None;
        let started = self.started();
        self.log(None, started);
    }

    /// Of a site at rest nothing may change; of one in the middle of its work not much.
    fn lose_log(&mut self) {
        let resting = self.fate.chance(600) && self.rest();
        let turn = Before::of(self);
        let answers = Answers::of(self);
        self.fate
            .say(|| format!("    {PREFIX} loses its log, at rest: {resting}"));
        self.state = State {
            at: self.state.at,
            ..State::default()
        };
        self.spoilt.clear();
        self.restart();
        if resting {
            self.look_around();
            answers.compare(self);
        }
        self.settle();
        turn.check(self);
        answers.kept(self);
    }

    /// Until nothing is on its way and store and log agree; whether it came to that.
    fn rest(&mut self) -> bool {
        for _ in 0..RESTS_MAX {
            self.relist();
            self.turn();
            let ours = self.ours();
            let waits = !ours.ledger.spool.is_empty() || !ours.ledger.conflicts.is_empty();
            let mut live = ours.backups.all.values();
            // A damaged history comes again with the next look at the server.
            let histories = |file: &File| matches!(file, File::History(_));
            let mends = ours.ledger.damaged.keys().any(histories);
            let busy =
                mends || live.any(|b| b.phase != machine::projection::backups::Phase::Complete);
            // One that saw another cluster first waits for that one, and what the server cannot
            // send any more shows only to a stream.
            let streams = ours.servers.stream.is_some();
            let ours = ours.servers.system_id == Some(7) && self.cluster.system_id == 7 && streams;
            if ours && !(waits || busy || self.unlisted || self.unread) {
                return true;
            }
            self.pass(20 * MINUTE_MS);
        }
        false
    }

    fn relist(&mut self) {
        for task in [
            Task::Reconcile { site: site() },
            Task::ReadMarks { site: site() },
        ] {
            self.perform(&task);
        }
    }

    /// The first tasks of a new log, in any order: nothing was decided on them yet.
    fn look_around(&mut self) {
        let mut tasks = [
            Task::Reconcile { site: site() },
            Task::ReadMarks { site: site() },
            Task::Probe {
                site: site(),
                node: 0,
            },
        ];
        tasks.rotate_left(usize::try_from(self.fate.below(3)).unwrap());
        if self.fate.chance(500) {
            tasks.swap(0, 1);
        }
        tasks.iter().for_each(|task| self.perform(task));
        // What the server cannot send any more is missed only once a stream has passed over it.
        if self.ours().servers.up().next().is_some() {
            self.connect(site(), 0, machine::task::Start::Anchor);
        }
    }

    /// Nobody has the private key of what was written under this one any more.
    fn lose_key(&mut self) {
        let at = self.clock();
        let fate = self.fate.clone();
        self.keys.lose(&fate, at);
    }
}

/// A task that failed is tried again after minutes, after hours at last.
const RESTS_MAX: u32 = 8;
const MINUTE_MS: u64 = 60_000;
