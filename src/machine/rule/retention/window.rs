//! Where the recovery window begins.

use super::order::Member;
use crate::event::Millis;
use crate::rule::holes;

/// The newest restorable backup that had ended when the window begins; `None` if none is so old.
/// One on a branch that the cluster left leads to no moment since, and neither may one of which
/// nobody knows: then the window needs an older one too, or all of them. One of an origin leads to
/// the end of that site's history, where a later one goes on.
pub fn anchor(members: &[Member<'_>], window_ms: u64, now: Millis) -> Option<usize> {
    let last = members.iter().rfind(|member| member.good)?;
    let seen = last.ended.min(now);
    let begins = Millis(seen.0.checked_sub(window_ms)?);
    let leads = |member: &Member<'_>| {
        let content = member.backup.content.as_ref();
        content.is_some_and(|content| holes::leads_on(member.site.site, content))
    };
    members
        .iter()
        .rposition(|member| member.good && member.ended <= begins && leads(member))
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use super::super::plan;
    use super::super::tests::{MAIN, NOW, alone, policy, site, told};
    use crate::event::{Branch, Event};
    use crate::projection::timelines::Timelines;
    use crate::wal::{Segment, SegmentSize, Timeline};

    #[test]
    fn the_window_begins_with_a_backup_that_leads_to_what_is_written_now() {
        let mut site = site("a9@1.100 b8@1.120 c1@2.111");
        site.ledger.segment_size = Some(SegmentSize::DEFAULT);
        site.ledger.frontier = Some(Segment::new(Timeline(2), 112));
        let (policy, doubtful) = policy("count=1 window=5");
        // Timeline 2 began there, or nobody knows where.
        for (left, expect) in [
            (130, "-a:count"),
            (110, "a:window"),
            (90, "a:window"),
            (0, "a:window"),
        ] {
            let switch = Segment::new(Timeline(1), left).start(SegmentSize::DEFAULT);
            let (timeline, on) = (Timeline(2), Timeline(1));
            let ancestors = [Branch {
                timeline: on,
                switch,
            }]
            .into();
            site.timelines = Timelines::default();
            if left > 0 {
                site.timelines.apply(&Event::TimelineLearned {
                    timeline,
                    ancestors,
                });
            }
            let told = told(&plan(&alone(&MAIN, &site), &policy, NOW, doubtful));
            assert_eq!(
                told,
                format!("{expect} b:window c:new,window,count"),
                "{left}"
            );
        }
    }
}
