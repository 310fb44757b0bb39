//! What is read of a store that fails: the right bytes, or an error, never an absence.

use std::path::Path;

use super::super::install;
use super::*;
use crate::support::process::{Answer as Said, command};

/// By a daemon and without one: 4 is "confirmed to be absent", which ends an archive.
#[test]
fn s40_no_fault_makes_an_absence_of_a_segment() {
    let (Some(install), Some(seaweed)) = (install(15), seaweed()) else {
        return;
    };
    let mut world = World::start(install, &seaweed.bucket());
    let name = world.segment();
    world.wait_archived(&name, "at first");
    let right = world.stored(&name);
    // The daemon writes into the data directory alone.
    let target = world.server.data.join("fetched");
    for (kind, fault, _) in cases(&["^GET .*/xlog/", "^GET .*/xlog/"]) {
        for direct in [false, true] {
            let what = format!("{kind}, {fault:?}, direct: {direct}");
            world.proxy.clear();
            world.proxy.plan(Pick::line(kind), fault.clone());
            let said = fetch(&world, direct, &name, &target);
            assert_eq!(world.proxy.pending(), 0, "{what}");
            match said.status.code() {
                Some(0) => assert!(fs::read(&target).unwrap() == right, "{what}"),
                Some(255) => {
                    assert!(!target.exists(), "{what}: a file of a failure");
                    assert!(!said.stderr.is_empty() || !said.stdout.is_empty(), "{what}");
                }
                code => panic!("{what}: exit code {code:?}\n{}{}", said.stdout, said.stderr),
            }
            let _from_this_round = fs::remove_file(&target);
        }
    }
    world.proxy.clear();
    let absent = fetch(&world, true, "0000000100000000000000FF", &target);
    assert_eq!(absent.status.code(), Some(4));
    world.daemon.assert_alive();
}

fn fetch(world: &World, direct: bool, name: &str, target: &Path) -> Said {
    if direct {
        let words = ["--mode", "restore", "--site", SITE, "--xlog", name];
        let mut tool = world.daemon.tool("pghoard_postgres_command", &words);
        tool.arg("--output").arg(target);
        return run(tool);
    }
    let line = world.daemon.fetch_command().replace("%f", name);
    let mut shell = command("sh", world.daemon.home());
    shell.args(["-c", &line.replace("%p", &target.display().to_string())]);
    run(shell)
}

/// A restore is right, or ends with an error and leaves nothing that starts.
#[test]
fn s18_s19_a_restore_is_right_or_fails_aloud_whatever_a_request_meets() {
    let (Some(install), Some(seaweed)) = (install(15), seaweed()) else {
        return;
    };
    let mut world = World::start(install, &seaweed.bucket());
    let name = world.segment();
    world.wait_archived(&name, "at first");
    world.proxy.clear();
    let whole = Server::empty(install);
    world
        .daemon
        .restore_into(&whole.data, &["--restore-to-primary"])
        .ok();
    let right = files(&whole.data);
    assert!(right.len() > 500, "{} files", right.len());
    let requests = world.proxy.seen().len();
    assert!(requests >= 4, "{requests} requests");
    let step = scale().pick(7, 1);
    for request in 0..requests {
        for (place, (fault, class)) in faults().into_iter().enumerate() {
            if (place + request) % step != 0 {
                continue;
            }
            let what = format!("request {request}, {fault:?}");
            world.proxy.clear();
            world.proxy.plan(Pick::Nth(request), fault);
            let target = Server::empty(install);
            let said = world
                .daemon
                .restore_into(&target.data, &["--restore-to-primary"]);
            assert_eq!(world.proxy.pending(), 0, "{what}");
            match said.status.code() {
                Some(0) => assert!(files(&target.data) == right, "{what}: other files"),
                Some(1) => {
                    assert!(class.is_some(), "{what}: {}{}", said.stdout, said.stderr);
                    let text = format!("{}{}", said.stdout, said.stderr);
                    assert!(text.contains("FATAL"), "{what}: {text}");
                    let started = target.data.join("global/pg_control").exists();
                    assert!(!started, "{what}: it would start");
                }
                code => panic!("{what}: exit code {code:?}"),
            }
        }
    }
    world.daemon.assert_alive();
}

/// Names and bytes of a data directory.
fn files(data: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let name = path.strip_prefix(data).unwrap().display().to_string();
                    found.push((name, fs::read(&path).unwrap()));
                }
            }
        }
    }
    found.sort();
    found
}
