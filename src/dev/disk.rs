//! What the API server keeps, on disk: in memory for whoever reads, and in a file in the order in which it was written. The file
//! is written by a thread of its own, many changes at once; who must know that a change is kept waits for its version.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::watch;

use super::chance;
use crate::apiserver::{Change, ChangeType, Key, Kind, MemoryStore, Object, Store, json_text};

/// By kind, namespace and name: the object as JSON.
const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const FACTS: TableDefinition<'_, &str, &str> = TableDefinition::new("facts");
/// The version of the last change.
const VERSION: &str = "version";
/// What the UIDs are made from.
const SALT: &str = "salt";
/// Changes that wait to be written; whoever makes more waits as well.
const QUEUED: usize = 4096;
/// Changes that are written at once.
const BATCH: usize = 512;
/// Changes that watches are told of without a list.
const TOLD: usize = 1024;

/// How far the file is.
#[derive(Clone, Debug, Default)]
pub struct Written {
    pub version: u64,
    /// Why nothing is written any more.
    pub fault: Option<String>,
}

/// What the API server keeps.
pub struct Disk {
    memory: MemoryStore,
    log: SyncSender<Change>,
}

/// A file that was opened.
pub struct Opened {
    pub disk: Disk,
    pub written: watch::Receiver<Written>,
    pub salt: String,
}

/// Opens the file, or makes it.
pub fn open(file: &Path) -> Result<Opened, String> {
    let wrong = |why: redb::Error| format!("cannot use {}: {why}; --fresh begins anew", file.display());
    let (database, snapshot) = read(file).map_err(wrong)?;
    let (log, changes) = sync_channel(QUEUED);
    let (written, seen) = watch::channel(Written { version: snapshot.version, fault: None });
    let write = move || {
        if let Err(error) = write(&database, &changes, &written) {
            written.send_modify(|written| written.fault = Some(error.to_string()));
        }
    };
    std::thread::Builder::new().name("disk".to_owned()).spawn(write).map_err(|error| error.to_string())?;
    let memory = MemoryStore::restored(snapshot.objects, snapshot.version, TOLD);
    Ok(Opened { disk: Disk { memory, log }, written: seen, salt: snapshot.salt })
}

/// What the file held when it was opened.
struct DiskSnapshot {
    objects: Vec<Object>,
    version: u64,
    salt: String,
}

fn read(file: &Path) -> Result<(Database, DiskSnapshot), redb::Error> {
    let database = Database::create(file)?;
    let begin = database.begin_write()?;
    {
        begin.open_table(OBJECTS)?;
        let mut facts = begin.open_table(FACTS)?;
        let has_salt = facts.get(SALT)?.is_some();
        if !has_salt {
            facts.insert(SALT, chance::hex().as_str())?;
        }
    }
    begin.commit()?;
    let seen = database.begin_read()?;
    let facts = seen.open_table(FACTS)?;
    let version = facts.get(VERSION)?.and_then(|version| version.value().parse().ok()).unwrap_or_default();
    let salt = facts.get(SALT)?.map(|salt| salt.value().to_owned()).unwrap_or_default();
    let mut objects = Vec::new();
    for entry in seen.open_table(OBJECTS)?.iter()? {
        let (key, json) = entry?;
        let object = key_of(key.value()).zip(json_text::read(json.value()).ok());
        objects.extend(object.map(|(key, value)| Object::new(key, value)));
    }
    Ok((database, DiskSnapshot { objects, version, salt }))
}

/// Until the store is gone, and all that it said is written.
fn write(database: &Database, changes: &Receiver<Change>, written: &watch::Sender<Written>) -> Result<(), redb::Error> {
    while let Ok(first) = changes.recv() {
        let transaction = database.begin_write()?;
        let mut version = 0;
        {
            let mut objects = transaction.open_table(OBJECTS)?;
            for change in std::iter::once(first).chain(changes.try_iter().take(BATCH)) {
                version = change.object.version;
                let key = text_of(&change.object.key);
                if change.change_type == ChangeType::Deleted {
                    objects.remove(key.as_str())?;
                } else if is_kept(change.object.key.kind) {
                    objects.insert(key.as_str(), change.object.json().as_ref())?;
                }
            }
            transaction.open_table(FACTS)?.insert(VERSION, version.to_string().as_str())?;
        }
        transaction.commit()?;
        written.send_modify(|written| written.version = version);
    }
    Ok(())
}

/// What is told once and what is true for seconds is not kept.
fn is_kept(kind: Kind) -> bool {
    !matches!(kind, Kind::Event | Kind::Lease)
}

fn text_of(key: &Key) -> String {
    format!("{}/{}/{}", key.kind.name(), key.namespace, key.name)
}

fn key_of(text: &str) -> Option<Key> {
    let mut parts = text.splitn(3, '/');
    let (kind, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
    let kind = Kind::ALL.into_iter().find(|known| known.name() == kind)?;
    Some(Key::new(kind, namespace, name))
}

impl Store for Disk {
    fn version(&self) -> u64 {
        self.memory.version()
    }

    fn find(&self, key: &Key) -> Option<Arc<Object>> {
        self.memory.find(key)
    }

    fn list(&self, kind: Kind) -> Vec<Arc<Object>> {
        self.memory.list(kind)
    }

    fn commit(&mut self, change: Change) {
        // Where nobody writes any more, `Written` says so, and whoever waits for it hears of it.
        let _ = self.log.send(change.clone());
        self.memory.commit(change);
    }

    fn changes(&self, after: u64) -> Option<Vec<Change>> {
        self.memory.changes(after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn change(change_type: ChangeType, name: &str, version: u64) -> Change {
        let value = json!({"metadata": {"name": name, "uid": "u", "resourceVersion": version.to_string()}});
        let object = Object::new(Key::new(Kind::Pod, "dev", name), value);
        Change { change_type, object: Arc::new(object), before: None }
    }

    #[test]
    fn what_was_written_is_there_again() {
        let folder = std::env::temp_dir().join(format!("lockstep-disk-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a folder");
        let file = folder.join("state");
        let mut opened = open(&file).expect("it opens");
        for (number, (change_type, name)) in [
            (ChangeType::Added, "a"),
            (ChangeType::Added, "b"),
            (ChangeType::Modified, "b"),
            (ChangeType::Deleted, "a"),
        ]
        .into_iter()
        .enumerate()
        {
            opened.disk.commit(change(change_type, name, number as u64 + 1));
        }
        let salt = opened.salt.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let seen = runtime.block_on(opened.written.wait_for(|written| written.version == 4)).expect("written").clone();
        assert_eq!(seen.fault, None);
        drop(opened);
        // Its thread lets go of the file when it has seen that.
        let again = (0..500).find_map(|_| {
            std::thread::yield_now();
            open(&file).ok()
        });
        let again = again.expect("it opens");
        assert_eq!((again.disk.version(), again.salt), (4, salt));
        let names: Vec<String> = again.disk.list(Kind::Pod).iter().map(|pod| pod.key.name.clone()).collect();
        assert_eq!(names, ["b"]);
        assert!(again.disk.changes(3).is_none(), "whoever watches lists");
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
