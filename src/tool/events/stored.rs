//! For `pghoard events --from-store`: what the site's store holds of the log, chunk by chunk in the
//! order in which they happened. It needs no log and no daemon.

use std::io::{Read, Write};

use machine::{Class, Millis};

use super::{Flags, Shown};
use crate::codec::decoder;
use crate::config::Config;
use crate::failure::{Failure, Outcome};
use crate::journal::chunk;
use crate::publish::story::Story;
use crate::store::choose::{self, Missing};

/// A chunk is a few megabytes; what claims more is none of ours.
const CHUNK_BYTES_MAX: u64 = 1 << 30;

pub fn show(config: &Config, flags: &Flags, out: &mut dyn Write) -> Outcome<()> {
    let site = config.site(flags.site.as_deref())?;
    let store = choose::store(site.storage()?, Missing::Refuse)?;
    let keys = site.keyring()?;
    let folder = format!("{}/{}", site.prefix, chunk::FOLDER);
    let mut names = Vec::new();
    store.list(&folder, &mut |entry| {
        names.push(entry.key);
        Ok(())
    })?;
    let mut chunks: Vec<(Millis, String)> = Vec::new();
    for key in names {
        let Some(object) = store.look(&key)? else {
            continue;
        };
        let at = chunk::first_at(&object.metadata);
        let none = || Failure::new(Class::Corrupt, format!("'{key}' is no chunk of a log"));
        chunks.push((at.ok_or_else(none)?, key.clone()));
    }
    if chunks.is_empty() {
        let message = format!("'{folder}' in {} holds no events", store.name());
        return Err(Failure::new(Class::NotFound, message)
            .hint("has the daemon exported any yet? see event_log_export"));
    }
    chunks.sort();
    // The site's events and those of no site: both belong to it here.
    let mut shown = Shown {
        flags,
        story: Story::default(),
        last: 0,
        gone: None,
        whole: true,
    };
    for (_, key) in chunks {
        let (object, body) = store.get(&key)?;
        let told = |failure: Failure| failure.about(format!("'{key}'"));
        let size = object.entry.size_bytes;
        let plain = decoder(body, size, &object.metadata, &keys).map_err(told)?;
        let mut content = Vec::new();
        plain
            .take(CHUNK_BYTES_MAX)
            .read_to_end(&mut content)
            .map_err(|e| Failure::from_io(&e, format!("'{key}'")))?;
        chunk::open(&content, &mut |envelope| shown.tell(envelope, out)).map_err(told)?;
        if let Some(ended) = shown.ended() {
            return ended;
        }
    }
    out.flush().map_err(|e| Failure::io(&e, "standard output"))
}
