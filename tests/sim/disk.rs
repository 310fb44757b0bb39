//! The disk below the spool: it forgets what was not synced, names included, when the power goes,
//! and fails at random. It remembers what was sealed and removed for the checks.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use pghoard::spool::{Disk, DiskFile, Found, Readable};

use crate::fate::{Fate, Fault};

#[derive(Default)]
struct Inode {
    data: Vec<u8>,
    synced: Vec<u8>,
}

/// What happened to names and is not durable yet, in order.
enum Change {
    Create(String, u64),
    Rename(String, String),
    Remove(String),
}

#[derive(Default)]
struct State {
    names: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    pending: Vec<Change>,
    inodes: BTreeMap<u64, Inode>,
    next: u64,
    sealed: Vec<(String, Vec<u8>)>,
    removed: Vec<String>,
}

#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    fate: Fate,
}

impl SimDisk {
    pub fn new(fate: Fate) -> SimDisk {
        SimDisk {
            state: Arc::default(),
            fate,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn trouble(&self) -> io::Result<()> {
        self.fate.burn()?;
        if self.fate.strikes(Fault::DiskOperation) {
            let full = self.fate.chance(500);
            return Err(match full {
                true => io::ErrorKind::StorageFull.into(),
                false => io::Error::other("the spool's disk failed"),
            });
        }
        Ok(())
    }

    pub fn has(&self, name: &str) -> bool {
        self.lock().names.contains_key(name)
    }

    /// What a power cut at this moment would surely leave of the file.
    pub fn durable(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.lock();
        let inode = state.durable.get(name)?;
        Some(state.inodes.get(inode)?.synced.clone())
    }

    /// Files that took their final name since the last call, with their content.
    pub fn take_sealed(&self) -> Vec<(String, Vec<u8>)> {
        std::mem::take(&mut self.lock().sealed)
    }

    pub fn take_removed(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().removed)
    }

    pub fn power_cut(&self) {
        let mut state = self.lock();
        let changes = std::mem::take(&mut state.pending);
        let kept = self.fate.below(u64::try_from(changes.len()).unwrap() + 1);
        for change in changes.iter().take(usize::try_from(kept).unwrap()) {
            apply(&mut state.durable, change);
        }
        state.names = state.durable.clone();
        for inode in state.inodes.values_mut() {
            // Of what was not synced each byte is new, old, or never was.
            let whole = self.fate.chance(300);
            for (at, byte) in inode.data.iter_mut().enumerate() {
                let old = inode.synced.get(at).copied().unwrap_or(0);
                if !whole && *byte != old && self.fate.chance(500) {
                    *byte = old;
                }
            }
            inode.synced = inode.data.clone();
        }
    }
}

fn apply(names: &mut BTreeMap<String, u64>, change: &Change) {
    match change {
        Change::Create(name, inode) => drop(names.insert(name.clone(), *inode)),
        Change::Remove(name) => drop(names.remove(name)),
        Change::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
    }
}

impl State {
    fn change(&mut self, change: Change) {
        apply(&mut self.names, &change);
        self.pending.push(change);
    }

    fn settle(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            apply(&mut self.durable, &change);
        }
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let inode = *self.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        self.sealed
            .push((to.into(), self.inodes[&inode].data.clone()));
        self.change(Change::Rename(from.into(), to.into()));
        Ok(())
    }
}

impl Disk for SimDisk {
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.trouble()?;
        let mut state = self.lock();
        let inode = match state.names.get(name) {
            Some(inode) => *inode,
            None => {
                state.next += 1;
                let inode = state.next;
                state.inodes.insert(inode, Inode::default());
                state.change(Change::Create(name.into(), inode));
                inode
            }
        };
        drop(state);
        let disk = self.clone();
        Ok(Box::new(Opened { disk, inode }))
    }

    fn read(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.trouble()?;
        let inode = *self.lock().names.get(name).ok_or(io::ErrorKind::NotFound)?;
        let disk = self.clone();
        Ok(Box::new(Opened { disk, inode }))
    }

    fn list(&self) -> io::Result<Vec<Found>> {
        self.trouble()?;
        let state = self.lock();
        let found = state.names.iter().map(|(name, inode)| Found {
            name: name.clone(),
            bytes: u64::try_from(state.inodes[inode].data.len()).unwrap(),
        });
        Ok(found.collect())
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        self.trouble()?;
        {
            let mut state = self.lock();
            if state.names.contains_key(to) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            state.rename(from, to)?;
        }
        // Renamed, and not durable yet.
        self.trouble()?;
        self.lock().settle();
        self.fate.burn()
    }

    fn rename_over(&self, from: &str, to: &str) -> io::Result<()> {
        self.trouble()?;
        if self.has(to) {
            self.fate
                .violated(format!("I6: the sealed '{to}' is replaced"));
        }
        self.lock().rename(from, to)?;
        self.trouble()?;
        self.lock().settle();
        self.fate.burn()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.trouble()?;
        let mut state = self.lock();
        if state.names.contains_key(name) {
            state.removed.push(name.into());
            state.change(Change::Remove(name.into()));
        }
        drop(state);
        self.fate.burn()
    }
}

struct Opened {
    disk: SimDisk,
    inode: u64,
}

impl Readable for Opened {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let state = self.disk.lock();
        let data = &state.inodes[&self.inode].data;
        let rest = data.get(usize::try_from(offset).unwrap()..).unwrap_or(&[]);
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn size(&self) -> io::Result<u64> {
        let state = self.disk.lock();
        Ok(u64::try_from(state.inodes[&self.inode].data.len()).unwrap())
    }
}

impl DiskFile for Opened {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.trouble()?;
        let mut state = self.disk.lock();
        let data = &mut state.inodes.get_mut(&self.inode).unwrap().data;
        let at = usize::try_from(offset).unwrap();
        let end = at + bytes.len();
        data.resize(data.len().max(end), 0);
        data[at..end].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.trouble()?;
        let mut state = self.disk.lock();
        let inode = state.inodes.get_mut(&self.inode).unwrap();
        inode.synced = inode.data.clone();
        state.settle();
        drop(state);
        self.disk.fate.burn()
    }
}
