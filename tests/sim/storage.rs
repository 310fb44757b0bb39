//! The disk below the log: what was not synced may be gone after a power cut, each write for
//! itself; operations fail at random.

use std::io;
use std::sync::{Arc, Mutex};

use redb::StorageBackend;

use crate::fate::{Fate, Fault};

#[derive(Debug, Default)]
struct Image {
    bytes: Vec<u8>,
    /// Writes since the last sync: where, what was there, what is there now.
    pending: Vec<(usize, Vec<u8>, Vec<u8>)>,
    /// A handle of an earlier process writes nothing any more.
    generation: u64,
}

#[derive(Clone, Debug)]
pub struct LogDisk {
    image: Arc<Mutex<Image>>,
    fate: Fate,
}

impl LogDisk {
    pub fn new(fate: Fate) -> LogDisk {
        LogDisk {
            image: Arc::default(),
            fate,
        }
    }

    /// A handle for a new process, or for a new try of the same one; older ones are cut off.
    pub fn open(&self) -> Backend {
        let mut image = self.image.lock().unwrap();
        image.generation += 1;
        Backend {
            image: Arc::clone(&self.image),
            fate: self.fate.clone(),
            generation: image.generation,
            faulty: true,
        }
    }

    /// A copy of what is on the disk, to read without disturbing it.
    pub fn copy(&self) -> Backend {
        let bytes = self.image.lock().unwrap().bytes.clone();
        let image = Image {
            bytes,
            ..Image::default()
        };
        Backend {
            image: Arc::new(Mutex::new(image)),
            fate: self.fate.clone(),
            generation: 0,
            faulty: false,
        }
    }

    pub fn cut_off(&self) {
        self.image.lock().unwrap().generation += 1;
    }

    /// Any subset of what was not synced is gone.
    pub fn power_cut(&self) {
        let mut image = self.image.lock().unwrap();
        let mut pending = std::mem::take(&mut image.pending);
        for (at, old, _) in pending.iter().rev() {
            overwrite(&mut image.bytes, *at, old);
        }
        // In an order that does not depend on the writer's.
        pending.sort_by_key(|(at, _, _)| *at);
        for (at, _, new) in pending {
            if self.fate.chance(500) {
                overwrite(&mut image.bytes, at, &new);
            }
        }
    }

    pub fn lose(&self) {
        let mut image = self.image.lock().unwrap();
        image.bytes.clear();
        image.pending.clear();
    }
}

fn overwrite(bytes: &mut [u8], at: usize, new: &[u8]) {
    for (place, byte) in bytes.iter_mut().skip(at).zip(new) {
        *place = *byte;
    }
}

#[derive(Debug)]
pub struct Backend {
    image: Arc<Mutex<Image>>,
    fate: Fate,
    generation: u64,
    faulty: bool,
}

impl Backend {
    fn act<T>(&self, act: impl FnOnce(&mut Image) -> T) -> io::Result<T> {
        if self.faulty {
            self.fate.burn()?;
            if self.fate.strikes(Fault::LogOperation) {
                return Err(io::Error::other("the log's disk failed"));
            }
        }
        let mut image = self.image.lock().unwrap();
        if image.generation != self.generation {
            return Err(io::Error::other("a handle of a dead process"));
        }
        Ok(act(&mut image))
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        let image = self.image.lock().unwrap();
        Ok(u64::try_from(image.bytes.len()).unwrap())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let image = self.image.lock().unwrap();
        let at = usize::try_from(offset).unwrap();
        let bytes = image.bytes.get(at..at + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    /// The length is durable at once.
    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).unwrap();
        self.act(|image| {
            image.bytes.resize(len, 0);
            image.pending.retain(|(at, old, _)| at + old.len() <= len);
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.act(|image| image.pending.clear())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        self.act(|image| {
            let old = image.bytes[at..at + data.len()].to_vec();
            image.bytes[at..at + data.len()].copy_from_slice(data);
            image.pending.push((at, old, data.to_vec()));
        })
    }
}
