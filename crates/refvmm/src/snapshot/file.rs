//! A file that is either as it was or complete.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::format::MAGIC;

/// What is written until it is complete: at FILE.partial, which takes FILE's place in the end.
///
/// Whatever ends the process before that, or the machine, FILE is what it was. What an earlier
/// process left behind there is overwritten by the next.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    partial: PathBuf,
    path: PathBuf,
    complete: bool,
}

impl NewFile {
    /// Begins to write what will be at `path`.
    ///
    /// # Errors
    /// The directory can't be written to, another process is just saving there, or the file that
    /// would be replaced is none that was saved.
    pub fn create(path: &Path) -> io::Result<Self> {
        ours_or_new(path)?;
        let name = path
            .file_name()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it names no file"))?;
        let mut partial = name.to_owned();
        partial.push(".partial");
        let partial = path.with_file_name(partial);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&partial)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "another process is saving there; wait for it, or give another name",
                ));
            }
            // A kernel without file locks has nothing that could be asked.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Between opening and locking, another process may have put it in its place.
        if !fs::metadata(&partial).is_ok_and(|there| same(&there, &file)) {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another process has just saved there; try again, or give another name",
            ));
        }
        file.set_len(0)?;
        Ok(Self {
            file,
            partial,
            path: path.to_owned(),
            complete: false,
        })
    }

    /// Puts the file in its place. From then on it survives a crash of the host.
    ///
    /// # Errors
    /// The disk is full or fails; what was at the path before is still there.
    pub fn complete(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.partial, &self.path)?;
        self.complete = true;
        // The name, too.
        let directory = self
            .path
            .parent()
            .filter(|path| !path.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.complete {
            // Nobody needs it; if it stays, the next save overwrites it.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// Whether both are one file.
fn same(there: &fs::Metadata, file: &File) -> bool {
    file.metadata()
        .is_ok_and(|here| (here.dev(), here.ino()) == (there.dev(), there.ino()))
}

/// A mistyped name must not cost anybody a disk.
fn ours_or_new(path: &Path) -> io::Result<()> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is no regular file; give the name of one that may be replaced",
        ));
    }
    let mut magic = [0; MAGIC.len()];
    let mut len = 0;
    while len < magic.len() {
        match file.read(&mut magic[len..])? {
            0 => break,
            read => len += read,
        }
    }
    if len == 0 || magic == MAGIC {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::AlreadyExists,
        "it exists and is not a saved machine; give another name, or remove it",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm");
        (folder, path)
    }

    #[test]
    fn until_it_is_complete_the_old_file_is_there() {
        let (_folder, path) = folder();
        let old: Vec<u8> = MAGIC.into_iter().chain([1]).collect();
        fs::write(&path, &old).unwrap();
        let mut new = NewFile::create(&path).unwrap();
        new.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), old);
        drop(new);
        assert_eq!(fs::read(&path).unwrap(), old);
        assert!(!path.with_file_name("vm.partial").exists());
        let mut new = NewFile::create(&path).unwrap();
        new.write_all(b"new").unwrap();
        new.complete().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert!(!path.with_file_name("vm.partial").exists());
    }

    #[test]
    fn what_a_process_that_was_killed_left_behind_is_overwritten() {
        let (_folder, path) = folder();
        fs::write(path.with_file_name("vm.partial"), [9; 100]).unwrap();
        let mut new = NewFile::create(&path).unwrap();
        new.write_all(b"new").unwrap();
        new.complete().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn two_saves_to_one_file_do_not_meet() {
        let (_folder, path) = folder();
        let first = NewFile::create(&path).unwrap();
        let error = NewFile::create(&path).unwrap_err();
        assert!(error.to_string().contains("another process"), "{error}");
        drop(first);
        NewFile::create(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_something_else_stays_what_it_is() {
        let (folder, path) = folder();
        fs::write(&path, [0; 512]).unwrap();
        let error = NewFile::create(&path).unwrap_err();
        assert!(error.to_string().contains("not a saved machine"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), [0; 512]);
        let error = NewFile::create(folder.path()).unwrap_err();
        assert!(error.to_string().contains("no regular file"), "{error}");
        // What `touch` or `mktemp` made is nothing yet.
        fs::write(&path, []).unwrap();
        NewFile::create(&path).unwrap();
    }
}
