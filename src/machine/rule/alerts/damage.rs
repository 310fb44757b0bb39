//! What verification found wrong in the store.

use alloc::format;

use super::{List, View};
use crate::projection::marks::Mark;

/// Damaged objects that are told one by one.
const DAMAGED_TOLD: usize = 20;

impl View<'_> {
    pub(super) fn damage(&self, list: &mut List) {
        let marks = self.site.marks.all.values();
        let damaged = marks.filter_map(|mark| match mark {
            Mark::Damaged { file, detail, at } => Some((file, detail, *at)),
            Mark::Hold { .. } | Mark::HoleAcknowledged { .. } | Mark::WalRetired { .. } => None,
        });
        let name = self.name;
        for (file, detail, since) in damaged.clone().take(DAMAGED_TOLD) {
            let key = file.key(self.size());
            let what = format!("site '{name}': '{key}' in the store is damaged: {detail}");
            let todo = "see what became of the storage; WAL is fetched anew from a server that \
                        still has it, a basebackup that is hit counts no more; run pghoard verify \
                        --all for the whole extent";
            list.add("verify_failed", since, what, todo);
        }
        if let Some((_, _, since)) = damaged.clone().nth(DAMAGED_TOLD) {
            let more = damaged.count().saturating_sub(DAMAGED_TOLD);
            let what = format!("site '{name}': {more} more objects are damaged");
            list.add("verify_failed", since, what, "see pghoard verify --all");
        }
        if let Some(trouble) = &self.site.scrub.trouble {
            let (count, message) = (trouble.objects.count(), &trouble.message);
            let what = format!("site '{name}': {count} objects cannot be verified: {message}");
            let todo = "mend the cause, else nobody knows whether a restore can read them; the \
                        next look comes within an hour";
            list.add("verify_failed", trouble.since, what, todo);
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::super::tests::check;
    use super::*;
    use crate::class::Class;
    use crate::event::{Event, Millis};
    use crate::file::File;
    use crate::wal::{Segment, SegmentSize, Timeline};

    fn damaged() -> Event {
        let mark = Mark::Damaged {
            file: File::Wal(Segment::new(Timeline(1), 1)),
            detail: "a bit".into(),
            at: Millis(1),
        };
        let key = mark.key(SegmentSize::DEFAULT);
        Event::Marked { key, mark }
    }

    fn mended() -> Event {
        let Event::Marked { key, .. } = damaged() else {
            return damaged();
        };
        Event::Unmarked { key }
    }

    fn unjudged(class: Class) -> Event {
        Event::Unverified {
            wal: Vec::new(),
            files: [File::History(Timeline(2))].into(),
            class,
            message: "no".into(),
        }
    }

    fn judged() -> Event {
        Event::Verified {
            wal: Vec::new(),
            files: [File::History(Timeline(2))].into(),
            bytes: 1,
            partly: 0,
        }
    }

    #[test]
    fn damage_and_doubt_are_told_until_they_end() {
        for (events, expect) in [
            (&[damaged()][..], "!verify_failed 1..1"),
            (&[damaged(), mended()], ""),
            (&[unjudged(Class::Config)], "!verify_failed 1..1"),
            (&[unjudged(Class::NotFound)], ""),
            (&[unjudged(Class::Config), judged()], ""),
        ] {
            check(events, expect);
        }
    }
}
