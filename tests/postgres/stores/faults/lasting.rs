//! Faults that last, and listings that lie.

use super::super::install;
use super::*;

/// Told with its class and its alert, and over when the fault is.
#[test]
fn s19_a_store_that_refuses_for_long_has_its_alert_and_loses_nothing() {
    let (Some(install), Some(seaweed)) = (install(15), seaweed()) else {
        return;
    };
    let mut world = World::start(install, &seaweed.bucket());
    let busy = Answer::slow_down(0);
    for (fault, class) in [
        (Fault::Answer(Answer::s3(403, "AccessDenied")), "denied"),
        (Fault::Answer(Answer::s3(400, "ExpiredToken")), "auth"),
        (Fault::Answer(busy), "quota"),
        (Fault::ResetInRequest, "network"),
        (Fault::Answer(Answer::s3(400, "BadDigest")), "corrupt"),
    ] {
        let before = world.classes().len();
        world.proxy.clear();
        world
            .proxy
            .plan_times(Pick::line("^PUT .*/xlog/"), usize::MAX, fault);
        let name = world.segment();
        world.daemon.wait_alert("upload_retries_warning");
        let text = world.daemon.alert("upload_retries_warning").unwrap();
        assert!(text.contains("an upload failed"), "{class}: {text}");
        assert!(!world.says_archived(&name), "{class}: it is not stored");
        let classes = world.classes().split_off(before);
        assert!(
            classes.iter().all(|told| told == class),
            "{class}: {classes:?}"
        );
        assert!(!classes.is_empty(), "{class}");
        world.proxy.clear();
        world.wait_archived(&name, class);
        // It stays until somebody has taken note.
        fs::remove_file(world.daemon.home().join("alerts/upload_retries_warning")).unwrap();
    }
    // Nobody listens at all.
    world.proxy.down();
    let name = world.segment();
    world.daemon.wait_alert("upload_retries_warning");
    assert!(!world.says_archived(&name));
    world.proxy.up();
    world.wait_archived(&name, "closed");
    assert_eq!(world.events("conflicted"), Vec::<Value>::new());
}

/// A listing of yesterday lacks what was stored since and shows what was deleted: neither makes a
/// hole, a deletion or a backup.
#[test]
fn a_stale_listing_makes_no_holes_and_no_deletions() {
    let (Some(install), Some(seaweed)) = (install(15), seaweed()) else {
        return;
    };
    let mut world = World::start(install, &seaweed.bucket());
    world.proxy.remember("list-type=2");
    let listed = |world: &World| world.events("reconciled").len();
    let change = |config: &mut Value| {
        config["backup_sites"][SITE]["reconcile_interval_seconds"] = json!(1);
        config["backup_sites"][SITE]["basebackup_count"] = json!(1);
    };
    world.daemon.reload(change);
    let before = listed(&world);
    wait_until("a listing", PATIENCE, || listed(&world) > before + 1);
    let names: Vec<String> = (0..4).map(|_| world.segment()).collect();
    names
        .iter()
        .for_each(|name| world.wait_archived(name, "stale"));
    let first = super::super::bases(&*world.plain, "basebackup");
    world.daemon.ask_for_backup(SITE);
    wait_until("the second basebackup alone", PATIENCE, || {
        let now = super::super::bases(&*world.plain, "basebackup");
        now.len() == 1 && now != first
    });
    let kinds = ["missing", "hole_opened", "backup_expired", "backup_found"];
    let known = kinds.map(|kind| world.events(kind));
    let lie = Pick::line("list-type=2");
    world.proxy.plan_times(lie, usize::MAX, Fault::Stale);
    let stored = super::super::keys(&*world.plain);
    let backups = world.daemon.backups();
    let before = listed(&world);
    wait_until("stale listings", PATIENCE, || {
        world.daemon.assert_alive();
        listed(&world) > before + 3
    });
    let seen = world.proxy.seen();
    assert!(seen.iter().any(|seen| seen.fault == Some(Fault::Stale)));
    assert_eq!(kinds.map(|kind| world.events(kind)), known);
    assert_eq!(world.daemon.backups(), backups);
    assert_eq!(world.daemon.alerts(), BTreeSet::new());
    let more = world.segment();
    world.wait_archived(&more, "with stale listings");
    let now: BTreeSet<String> = super::super::keys(&*world.plain).into_iter().collect();
    assert!(
        stored.iter().all(|key| now.contains(key)),
        "something was deleted"
    );
}
