//! A sealed chunk of the event log into the store, encoded as everything else of the site.
//!
//! Created, never replaced: a name that is taken holds the same chunk, put by a try that was told
//! as failed, or is refused. Budget: the chunk in memory, once plain and once encoded.

use std::io::Write;

use machine::{Class, Event};

use crate::codec::Encoder;
use crate::codec::digest::Digest;
use crate::failure::{Failure, Outcome};
use crate::store::{Body, Metadata, Put};
use crate::work::Place;

pub struct Export {
    pub first: u64,
    pub last: u64,
    /// Below the site's prefix.
    pub object: String,
    /// Events in it.
    pub events: u64,
    pub content: Vec<u8>,
    pub metadata: Metadata,
    /// The key of `metadata` that tells two chunks of one name apart.
    pub identity: &'static str,
}

pub fn run(place: &Place, export: &Export, emit: &mut dyn FnMut(Event)) -> Outcome<()> {
    let key = place.key(&export.object);
    let told = |error: std::io::Error| Failure::from_io(&error, &key);
    let mut encoder = Encoder::new(Vec::new(), &place.encoding)?;
    encoder.write_all(&export.content).map_err(told)?;
    let (encoded, sizes) = encoder.finish()?;
    let mut digest = Digest::new(place.hash);
    digest.update(&export.content);
    let mut metadata = export.metadata.clone();
    let mut add = |key: &str, value: String| metadata.insert(key.into(), value);
    add(
        "compression-algorithm",
        place.encoding.compression.name().into(),
    );
    add("compression-level", place.encoding.level.to_string());
    add("original-file-size", sizes.bytes_in.to_string());
    add("host", place.host.clone());
    add("hash", digest.hex());
    add("hash-algorithm", place.hash.name().into());
    if let Some(encryption) = &place.encoding.encryption {
        add("encryption-key-id", encryption.key_id.clone());
    }
    match place
        .store
        .put(&key, Body::Bytes(&encoded), &metadata, Put::Create)
    {
        Ok(()) => {}
        Err(failure) if failure.class == Class::Conflict => {
            let there = place.store.look(&key)?;
            let theirs = there.and_then(|object| object.metadata.get(export.identity).cloned());
            if theirs.as_ref() != export.metadata.get(export.identity) {
                return Err(failure.about("another log was exported under this name"));
            }
        }
        Err(failure) => return Err(failure),
    }
    emit(Event::Exported {
        first: export.first,
        last: export.last,
        object: export.object.clone(),
        events: export.events,
        bytes: sizes.bytes_out,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::work::testing::Bed;

    fn export(digest: &str) -> Export {
        Export {
            first: 1,
            last: 9,
            object: "event_log/1-9-ab".into(),
            events: 4,
            content: b"lines".to_vec(),
            metadata: [("digest".to_owned(), digest.to_owned())].into(),
            identity: "digest",
        }
    }

    #[test]
    fn a_chunk_is_put_once_and_another_of_its_name_refused() {
        let bed = Bed::make();
        let mut told = Vec::new();
        for _ in 0..2 {
            run(&bed.place, &export("one"), &mut |event| told.push(event)).unwrap();
        }
        assert_eq!(told[0], told[1]);
        assert!(matches!(
            &told[0],
            Event::Exported {
                first: 1,
                last: 9,
                events: 4,
                ..
            }
        ));
        assert_eq!(bed.keys(), ["main/event_log/1-9-ab"]);
        let other = run(&bed.place, &export("two"), &mut |_| ()).unwrap_err();
        assert_eq!(other.class, Class::Conflict);
    }
}
