//! The lease on a site's prefix: a small object that says which daemon writes there (D11).
//!
//! It tells of a second daemon; it is no lock: stores without conditional writes are served too,
//! and nothing that is stored is ever replaced anyway. Clocks need not agree: another's lease ends
//! when it was not renewed between two looks of ours that are far enough apart by a clock of ours
//! that nobody can set. Two daemons with one identity (a copied `backup_location`) are told apart
//! by what this process wrote.
//!
//! Budget: one get and one put a minute and site.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use machine::event::Lease;
use machine::{Class, Millis};
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::failure::{Failure, Outcome};
use crate::store::{Body, Metadata, Put};
use crate::work::{Place, label};

/// Below the site's prefix, in no folder that is listed.
pub const KEY: &str = "daemon_lease";
/// Between two looks.
pub const EVERY: Duration = Duration::from_secs(60);
/// Another's lease that was not renewed for so long has no holder any more.
pub const ENDS_AFTER: Duration = Duration::from_secs(600);

const FILE_NAME: &str = "instance_id";
/// A lease is some 200 bytes; more than this is none of ours.
const BYTES_MAX: u64 = 16 << 10;
/// Who loses a race for a lease that was absent looks again at once.
const RACES_MAX: u32 = 3;

/// Who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// One per `backup_location`, for ever.
    pub instance: String,
    /// One per process.
    pub session: String,
    pub host: String,
}

impl Identity {
    pub fn of(backup_location: &Path, host: &str) -> Outcome<Identity> {
        let path = backup_location.join(FILE_NAME);
        let written = durable::create(&path, random()?.as_bytes());
        if let Err(failure) = written
            && failure.class != Class::Conflict
        {
            return Err(failure);
        }
        let text = std::fs::read_to_string(&path);
        let text = text.map_err(|e| Failure::io(&e, path.display()))?;
        let instance = text.trim();
        let plain = instance.len() == 32 && instance.bytes().all(|b| b.is_ascii_hexdigit());
        if !plain {
            let message = format!("'{}' does not hold 32 hexadecimal digits", path.display());
            let hint = "remove it: the daemon then counts as a new one";
            return Err(Failure::new(Class::Corrupt, message).hint(hint));
        }
        Ok(Identity {
            instance: instance.into(),
            session: random()?,
            host: host.into(),
        })
    }

    /// Of a program that only passes by: nobody was it before, nobody will be it again.
    pub fn passing(host: &str) -> Outcome<Identity> {
        Ok(Identity {
            instance: random()?,
            session: random()?,
            host: host.into(),
        })
    }
}

fn random() -> Outcome<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|e| Failure::new(Class::Internal, format!("no randomness: {e}")))?;
    Ok(hex::encode(bytes))
}

/// What this process knows from its looks before.
#[derive(Debug, Default)]
pub struct Watch {
    /// We wrote the lease: one of ours with another session is a copy of us.
    wrote: bool,
    /// Another's lease, and when it was first seen like that.
    theirs: Option<(Vec<u8>, Duration)>,
}

/// The object.
#[derive(Debug, Serialize, Deserialize)]
struct Written {
    instance: String,
    session: String,
    host: String,
    started_at: String,
    renewed_at: String,
}

/// The time to write down, and one that nobody can set, to wait by.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub told: Millis,
    pub passed: Duration,
}

/// Renews the lease if it is ours or nobody's; says who holds it.
pub fn look(place: &Place, me: &Identity, watch: &mut Watch, now: Moment) -> Outcome<Lease> {
    for _ in 0..RACES_MAX {
        let found = match read(place)? {
            None => match write(place, me, now.told, now.told, Put::Create) {
                Ok(lease) => {
                    watch.wrote = true;
                    return Ok(lease);
                }
                // Another came first.
                Err(failure) if failure.class == Class::Conflict => continue,
                Err(failure) => return Err(failure),
            },
            Some(found) => found,
        };
        let written: Option<Written> = serde_json::from_slice(&found).ok();
        let since = written.as_ref().and_then(|w| label::millis(&w.started_at));
        let ours = written.as_ref().is_some_and(|written| {
            let same = written.session == me.session || !watch.wrote;
            written.instance == me.instance && same
        });
        let since = match (ours, watch.ended(&found, now.passed)) {
            (true, _) => since.unwrap_or(now.told),
            (false, true) => now.told,
            (false, false) => return Ok(foreign(written, since)),
        };
        let lease = write(place, me, since, now.told, Put::Replace)?;
        watch.wrote = true;
        watch.theirs = None;
        return Ok(lease);
    }
    let message = "the lease comes and goes: more than one daemon is after it";
    Err(Failure::new(Class::Conflict, message).about(place.key(KEY)))
}

/// Says who holds it and writes nothing: for a site at rest, whose own daemon may come back.
pub fn watch(place: &Place, me: &Identity, watch: &mut Watch, now: Moment) -> Outcome<Lease> {
    let free = Lease {
        holder: me.instance.clone(),
        host: me.host.clone(),
        ours: true,
        started_at: Millis(0),
    };
    let Some(found) = read(place)? else {
        return Ok(free);
    };
    let written: Option<Written> = serde_json::from_slice(&found).ok();
    let ours = written.as_ref().is_some_and(|w| w.instance == me.instance);
    if ours || watch.ended(&found, now.passed) {
        return Ok(free);
    }
    let since = written.as_ref().and_then(|w| label::millis(&w.started_at));
    Ok(foreign(written, since))
}

/// Gives the lease up, if this process was the last to write it.
pub fn release(place: &Place, me: &Identity) -> Outcome<()> {
    let written: Option<Written> =
        read(place)?.and_then(|found| serde_json::from_slice(&found).ok());
    match written.is_some_and(|written| written.session == me.session) {
        true => place.store.delete(&place.key(KEY)),
        false => Ok(()),
    }
}

impl Watch {
    /// Whether another's lease, which reads like this, has been as it is for too long.
    fn ended(&mut self, found: &[u8], passed: Duration) -> bool {
        match &self.theirs {
            Some((seen, at)) if seen == found => passed.saturating_sub(*at) >= ENDS_AFTER,
            Some(_) | None => {
                self.theirs = Some((found.to_vec(), passed));
                false
            }
        }
    }
}

fn foreign(written: Option<Written>, since: Option<Millis>) -> Lease {
    let (holder, host) = match written {
        Some(written) => (written.instance, written.host),
        None => ("unreadable".into(), "unknown".into()),
    };
    Lease {
        holder,
        host,
        ours: false,
        started_at: since.unwrap_or_default(),
    }
}

fn read(place: &Place) -> Outcome<Option<Vec<u8>>> {
    let key = place.key(KEY);
    let body = match place.store.get(&key) {
        Ok((_, body)) => body,
        Err(failure) if failure.class == Class::NotFound => return Ok(None),
        Err(failure) => return Err(failure),
    };
    let mut text = Vec::new();
    body.take(BYTES_MAX)
        .read_to_end(&mut text)
        .map_err(|e| Failure::io(&e, &key))?;
    Ok(Some(text))
}

fn write(
    place: &Place,
    me: &Identity,
    started_at: Millis,
    renewed_at: Millis,
    mode: Put,
) -> Outcome<Lease> {
    let written = Written {
        instance: me.instance.clone(),
        session: me.session.clone(),
        host: me.host.clone(),
        started_at: label::iso(started_at),
        renewed_at: label::iso(renewed_at),
    };
    let key = place.key(KEY);
    let text = serde_json::to_vec(&written)
        .map_err(|e| Failure::new(Class::Internal, format!("{key}: {e}")))?;
    place
        .store
        .put(&key, Body::Bytes(&text), &Metadata::new(), mode)?;
    Ok(Lease {
        holder: me.instance.clone(),
        host: me.host.clone(),
        ours: true,
        started_at,
    })
}

#[cfg(test)]
mod tests {
    use machine::Event;
    use machine::projection::backups::Backups;
    use machine::projection::ledger::Ledger;

    use super::*;
    use crate::work::reconcile::{self, Known};
    use crate::work::testing::Bed;

    struct Daemon {
        me: Identity,
        watch: Watch,
    }

    fn daemon(instance: &str, session: &str) -> Daemon {
        Daemon {
            me: Identity {
                instance: instance.into(),
                session: session.into(),
                host: "vault".into(),
            },
            watch: Watch::default(),
        }
    }

    #[test]
    fn a_lease_is_watched_without_being_touched() {
        let bed = Bed::make();
        let (mut theirs, mut ours) = (daemon("a", "1"), daemon("b", "1"));
        let at = |second| Moment {
            told: Millis(second * 1_000),
            passed: Duration::from_secs(second),
        };
        let mut seen = |second| watch(&bed.place, &ours.me, &mut ours.watch, at(second)).unwrap();
        assert!(seen(0).ours);
        assert!(read(&bed.place).unwrap().is_none());
        theirs.look(&bed, 1, 1_000);
        let held = seen(2);
        assert!(!held.ours && held.holder == "a");
        theirs.look(&bed, 300, 300_000);
        assert!(!seen(601).ours);
        let before = read(&bed.place).unwrap();
        assert!(!seen(1_200).ours);
        assert!(seen(1_201).ours);
        assert_eq!(read(&bed.place).unwrap(), before);
        // Our own from before is no hindrance, and the other may always come back.
        assert!(theirs.look(&bed, 1_300, 1_300_000).ours);
    }

    impl Daemon {
        /// At this second by the clock nobody can set; the wall clock of each may say anything.
        fn look(&mut self, bed: &Bed, second: u64, wall: u64) -> Lease {
            let now = Moment {
                told: Millis(wall),
                passed: Duration::from_secs(second),
            };
            look(&bed.place, &self.me, &mut self.watch, now).unwrap()
        }

        fn holds(&mut self, bed: &Bed, second: u64) -> bool {
            self.look(bed, second, 1_000_000 + second).ours
        }
    }

    #[test]
    fn the_first_holds_it_and_the_second_waits_until_it_is_gone() {
        let bed = Bed::make();
        let (mut first, mut second) = (daemon("a", "1"), daemon("b", "1"));
        assert!(first.holds(&bed, 0));
        for minute in 1..30 {
            assert!(!second.holds(&bed, minute * 60), "{minute}");
            assert!(first.holds(&bed, minute * 60 + 1), "{minute}");
        }
        // The first one is gone; a lease that does not change ends by the second one's clock.
        assert!(!second.holds(&bed, 1_800));
        assert!(!second.holds(&bed, 2_399));
        assert!(second.holds(&bed, 2_400));
        // The first one was only asleep: now it is the younger.
        let lease = first.look(&bed, 2_401, 1);
        assert!(!lease.ours && lease.holder == "b");
        assert!(second.holds(&bed, 2_460));
    }

    #[test]
    fn a_restart_keeps_the_lease_and_its_beginning() {
        let bed = Bed::make();
        let begun = daemon("a", "1").look(&bed, 0, 5_000);
        assert_eq!(begun.started_at, Millis(5_000));
        let again = daemon("a", "2").look(&bed, 0, 90_000);
        assert!(again.ours);
        assert_eq!(again.started_at, Millis(5_000));
    }

    #[test]
    fn only_its_writer_gives_it_up() {
        let bed = Bed::make();
        let (mut first, second) = (daemon("a", "1"), daemon("a", "2"));
        release(&bed.place, &first.me).unwrap();
        assert!(first.holds(&bed, 0));
        release(&bed.place, &second.me).unwrap();
        assert_eq!(bed.keys(), ["main/daemon_lease"]);
        release(&bed.place, &first.me).unwrap();
        assert_eq!(bed.keys(), Vec::<String>::new());
    }

    #[test]
    fn clocks_need_not_agree() {
        let bed = Bed::make();
        let (mut first, mut second) = (daemon("a", "1"), daemon("b", "1"));
        // The holder's wall clock stands years away: it is renewed all the same.
        first.look(&bed, 0, 1);
        assert!(!second.look(&bed, 10, 1_795_339_646_717).ours);
        first.look(&bed, 60, 2);
        assert!(!second.look(&bed, 700, 1_795_339_646_717).ours);
    }

    #[test]
    fn a_copy_with_the_same_identity_is_another_daemon() {
        let bed = Bed::make();
        let (mut first, mut copy) = (daemon("a", "1"), daemon("a", "2"));
        assert!(first.holds(&bed, 0));
        // It cannot know better: to it this is a restart.
        assert!(copy.holds(&bed, 30));
        assert!(!first.holds(&bed, 60));
        assert!(copy.holds(&bed, 90));
    }

    #[test]
    fn what_cannot_be_read_is_foreign_and_ends_as_such() {
        let bed = Bed::make();
        bed.put("main/daemon_lease", &[]);
        let mut ours = daemon("a", "1");
        assert!(!ours.holds(&bed, 0));
        assert!(!ours.holds(&bed, 599));
        assert!(ours.holds(&bed, 600));
    }

    #[test]
    fn a_listing_does_not_count_it() {
        let bed = Bed::make();
        daemon("a", "1").look(&bed, 0, 1);
        let known = Known {
            ledger: Ledger::default(),
            backups: Backups::default(),
        };
        let mut last = None;
        reconcile::run(&bed.place, &known, &mut |event| last = Some(event)).unwrap();
        let counted = matches!(
            last,
            Some(Event::Reconciled {
                objects: 0,
                unknown: 0,
                ..
            })
        );
        assert!(counted, "{last:?}");
    }

    #[test]
    fn an_identity_is_made_once_and_a_damaged_one_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let first = Identity::of(folder.path(), "vault").unwrap();
        let second = Identity::of(folder.path(), "vault").unwrap();
        assert_eq!(first.instance, second.instance);
        assert_ne!(first.session, second.session);
        std::fs::write(folder.path().join(FILE_NAME), "x").unwrap();
        let failure = Identity::of(folder.path(), "vault").unwrap_err();
        assert_eq!(failure.class, Class::Corrupt);
    }
}
