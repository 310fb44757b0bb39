//! The folder as a store: what rohmu reads in it, and what is stale, damaged or locked.

use super::*;

#[test]
fn the_sidecar_is_what_rohmu_reads() {
    let folder = tempfile::tempdir().unwrap();
    let store = Local::create(folder.path()).unwrap();
    let metadata = Metadata::from([("a".to_owned(), "1".to_owned())]);
    store
        .put(
            "s/x",
            Body::Bytes(b"hello, pghoard\n"),
            &metadata,
            Put::Create,
        )
        .unwrap();
    let sidecar = fs::read_to_string(folder.path().join("s/x.metadata")).unwrap();
    let hash = "079e164296cdbd019b98a231173eb2bf3e6ca5dac226a456ca9d617678704be0";
    let expected = format!(r#"{{"Content-Length":"15","_hash":"{hash}","a":"1"}}"#);
    assert_eq!(sidecar, expected);
}

#[test]
fn stale_data_without_a_sidecar_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let store = Local::create(folder.path()).unwrap();
    fs::write(folder.path().join("x"), b"half of somethi").unwrap();
    assert_eq!(store.look("x").unwrap(), None);
    store
        .put("x", Body::Bytes(b"new"), &Metadata::new(), Put::Create)
        .unwrap();
    let (_, mut body) = store.get("x").unwrap();
    assert_eq!(io::read_to_string(&mut body).unwrap(), "new");
}

#[test]
fn s66_what_cannot_be_removed_keeps_its_sidecar() {
    let folder = tempfile::tempdir().unwrap();
    let store = Local::create(folder.path()).unwrap();
    store
        .put("x", Body::Bytes(b"12345"), &Metadata::new(), Put::Create)
        .unwrap();
    let (data, sidecar) = (folder.path().join("x"), folder.path().join("x.metadata"));
    let before = fs::read(&sidecar).unwrap();
    // A folder in its place cannot be removed as a file either.
    fs::remove_file(&data).unwrap();
    fs::create_dir(&data).unwrap();
    assert!(store.delete("x").is_err());
    assert_eq!(fs::read(&sidecar).unwrap(), before);
}

#[test]
fn s18_a_truncated_object_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let store = Local::create(folder.path()).unwrap();
    store
        .put("x", Body::Bytes(b"12345"), &Metadata::new(), Put::Create)
        .unwrap();
    fs::write(folder.path().join("x"), b"1234").unwrap();
    assert_eq!(store.look("x").unwrap_err().class, Class::Corrupt);
    let failure = store.get("x").map(|_| ()).unwrap_err();
    assert_eq!(failure.message, "x has 4 bytes instead of 5");
}

#[test]
fn a_missing_root_is_doubt_not_absence() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    assert_eq!(Local::open(&root).unwrap_err().class, Class::Config);
    let store = Local::create(&root).unwrap();
    fs::remove_dir(&root).unwrap();
    assert!(store.look("x").is_err());
    assert!(store.list("", &mut |_| Ok(())).is_err());
    assert!(store.delete("a/x").is_err());
}

#[test]
fn a_link_to_nowhere_is_doubt_not_absence() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let store = Local::create(&path("store")).unwrap();
    fs::create_dir(path("disk")).unwrap();
    std::os::unix::fs::symlink(path("disk"), path("store/site")).unwrap();
    let ask = || {
        [
            store
                .look("site/xlog/x")
                .map(|found| assert!(found.is_none())),
            store.get("site/x").map(drop),
            store.list("site/xlog", &mut |_| Ok(())),
            store.list("", &mut |_| Ok(())),
            store.delete("site/xlog/x"),
        ]
        .map(|answer| answer.err().map(|failure| failure.class))
    };
    assert_eq!(ask(), [None, Some(Class::NotFound), None, None, None]);
    fs::rename(path("disk"), path("elsewhere")).unwrap();
    assert_eq!(ask(), [Some(Class::Config); 5]);
}

#[test]
fn a_big_folder_is_listed_in_pages() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["a.b", "a/", "a0", "b"];
    for name in names {
        let path = folder.path().join(name);
        match name.ends_with('/') {
            true => fs::create_dir(path).unwrap(),
            false => fs::write(path, b"").unwrap(),
        }
    }
    let page = read_page(folder.path(), None).unwrap();
    assert_eq!(page.iter().collect::<Vec<_>>(), names);
    let rest = read_page(folder.path(), Some("a/".as_ref())).unwrap();
    assert_eq!(rest.iter().collect::<Vec<_>>(), ["a0", "b"]);
}

/// The folder could not be synced after both were in place: a sidecar that stayed would be an
/// object without content, and block the name for ever.
#[test]
fn what_failed_at_its_end_leaves_nothing_under_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let (data, scratch) = (folder.path().join("x"), folder.path().join("scratch"));
    fs::write(&data, "12345").unwrap();
    fs::write(sidecar_path(&data), "{}").unwrap();
    let body = Body::Scratch(crate::store::Scratch {
        path: &scratch,
        size_bytes: 5,
        sha256: [0; 32],
    });
    let failed = Err(Failure::new(Class::Internal, "no sync"));
    settle_scratch(body, &data, &failed).unwrap();
    assert!(!data.exists() && !sidecar_path(&data).exists());
    assert_eq!(fs::read(&scratch).unwrap(), b"12345");
}
