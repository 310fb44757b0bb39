//! What the store would not delete (S-66).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{List, View};

/// Backups that are told by name.
const NAMED: usize = 5;

impl View<'_> {
    pub(super) fn refused(&self, list: &mut List) {
        let Some(refused) = &self.site.attempts.refused else {
            return;
        };
        let mut names = refused.backups.keys().map(ToString::to_string);
        let mut what: Vec<String> = names.by_ref().take(NAMED).collect();
        for (count, of) in [
            (names.count(), "more basebackups"),
            (
                usize::try_from(refused.segments()).unwrap_or(usize::MAX),
                "WAL segments",
            ),
            (refused.marks.len(), "marks"),
        ] {
            if count > 0 {
                what.push(format!("{count} {of}"));
            }
        }
        let (name, what, message) = (self.name, what.join(", "), &refused.message);
        let what = format!("site '{name}': the store refuses to delete {what}: {message}");
        let todo = "nothing is lost and all else goes on: they stay, cost room, and are asked for \
                    again once a day; if they are locked for a time (object lock, immutability, a \
                    legal hold) this ends with the lock, else give the daemon the right to delete";
        list.add("deletion_refused", refused.since, what, todo);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;
    use super::*;
    use crate::class::Class;
    use crate::event::{Event, Range};
    use crate::wal::Timeline;

    fn range(first: u64, last: u64) -> Range {
        let timeline = Timeline(1);
        Range {
            timeline,
            first,
            last,
        }
    }

    fn refused(first: u64, last: u64) -> Event {
        Event::DeletionRefused {
            wal: [range(first, last)].into(),
            files: Vec::new(),
            marks: Vec::new(),
            class: Class::Denied,
            message: "locked".into(),
        }
    }

    fn deleted(first: u64, last: u64) -> Event {
        Event::Deleted {
            wal: [range(first, last)].into(),
            files: Vec::new(),
        }
    }

    #[test]
    fn s66_what_the_store_keeps_is_told_until_it_goes() {
        for (events, expect) in [
            (&[refused(1, 2)][..], "!deletion_refused 1..1"),
            (&[refused(1, 2), refused(4, 4)], "!deletion_refused 1..1"),
            (&[refused(1, 2), deleted(1, 1)], "!deletion_refused 1..1"),
            (&[refused(1, 2), deleted(1, 9)], ""),
        ] {
            check(events, expect);
        }
    }
}
