//! The machine is lost with its disk: a blank one with the same settings knows every backup.

use pghoard::codec::keys::generate;
use serde_json::{Value, json};

use crate::image::image;
use crate::machine::{HOST, PATIENCE, Place};
use crate::restored::fetched;
use crate::site::{SITE, Site};
use crate::support::stores::seaweed::seaweed;
use crate::support::wait_for;

#[test]
fn a_blank_machine_with_settings_and_key_knows_every_backup() {
    let Some(image) = image() else { return };
    let Some(store) = seaweed() else { return };
    let mut storage = store.bucket().object_storage();
    storage["host"] = json!(HOST);
    let (private, public) = generate(2_048).unwrap();
    let change = |settings: &mut Value| {
        let site = &mut settings["backup_sites"][SITE];
        site["object_storage"] = storage;
        site["encryption_key_id"] = json!("first");
        site["encryption_keys"] =
            json!({ "first": { "public": public, "private": private.as_str() } });
    };
    let Some(mut site) = Site::new(image, change) else {
        return;
    };
    let machine = site.place.boot();
    site.wait_backups(1);
    site.write();
    site.wait_caught_up();
    site.ask("PUT", &format!("/{SITE}/basebackup")).unwrap();
    site.wait_backups(2);
    let known = names(&site);
    let rows = site.rows();
    machine.cut_power();
    site.server.stop();

    let drives = site.place.drives.clone();
    let blank = Place::new(image, 4);
    let old = std::mem::replace(&mut site.place, blank);
    site.place.drives = drives;
    let _machine = site.place.boot();
    let found = wait_for("every backup", PATIENCE, || {
        let found = names(&site);
        (found.len() >= known.len()).then_some(found)
    });
    assert_eq!(found, known);
    drop(old);
    let mut server = fetched(&site, &json!({}));
    server.up();
    server.wait_primary();
    assert_eq!(server.one("select count(*) from rows"), rows.to_string());
}

fn names(site: &Site) -> Vec<String> {
    let listed = site
        .ask("GET", &format!("/{SITE}/basebackup"))
        .unwrap_or_default();
    let listed: Value = serde_json::from_str(&listed).unwrap_or_default();
    let all = listed["basebackups"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let mut names: Vec<String> = all
        .iter()
        .filter_map(|backup| Some(backup["name"].as_str()?.to_owned()))
        .collect();
    names.sort();
    names
}
