//! File systems of a scenario's own: small, failing, or cut off from their power. Needs root.

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    Field, SOON, eventually,
    process::{Process, run},
};

/// A file system, unmounted when dropped.
pub struct Mount {
    pub path: PathBuf,
    /// What `path` is in, where it is not in memory.
    shelf: Option<PathBuf>,
    image: Option<PathBuf>,
    options: &'static str,
    mounted: bool,
}

impl Mount {
    /// In memory, of a size such as `4m`.
    pub fn tmpfs(path: PathBuf, size: &str) -> Self {
        std::fs::create_dir_all(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let options = format!("size={size},mode=0700");
        succeed(command("mount", &["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path));
        Self { path, shelf: None, image: None, options: "", mounted: true }
    }

    /// A fresh ext4 with a journal in a file, `options` beside `loop`.
    pub fn ext4(path: PathBuf, image: PathBuf, megabytes: u64, options: &'static str) -> Self {
        let file = std::fs::File::create(&image);
        let file = file.unwrap_or_else(|e| panic!("{}: {e}", image.display()));
        file.set_len(megabytes << 20).unwrap_or_else(|e| panic!("{}: {e}", image.display()));
        succeed(command("mkfs.ext4", &["-q", "-F"]).arg(&image));
        Self::image(path, image, options)
    }

    /// What is in an image.
    pub fn image(path: PathBuf, image: PathBuf, options: &'static str) -> Self {
        // A test beside this one may make a mount namespace of its own, and its copy would keep the
        // file system alive: what is unmounted in a shared place is unmounted in each copy.
        let shelf = path.with_extension("shelf");
        let link = path;
        let path = shelf.join("fs");
        std::fs::create_dir_all(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        symlink(&path, &link).unwrap_or_else(|e| panic!("{}: {e}", link.display()));
        succeed(command("mount", &["--bind"]).arg(&shelf).arg(&shelf));
        succeed(command("mount", &["--make-shared"]).arg(&shelf));
        let (shelf, image) = (Some(shelf), Some(image));
        let mut mount = Self { path, shelf, image, options, mounted: false };
        mount.mount();
        mount
    }

    pub fn mount(&mut self) {
        let image = self.image.as_ref().expect("what is in memory is gone when it is unmounted");
        let mut command = command("mount", &["-o", self.options]);
        succeed(command.arg(image).arg(&self.path));
        self.mounted = true;
    }

    /// Once nobody has a file open in it.
    pub fn unmount(&mut self) {
        let what = format!("{} can be unmounted", self.path.display());
        eventually(&what, SOON, || {
            let (code, _, _) = run(command_on("umount", &self.path), SOON);
            (code == Some(0)).then_some(())
        });
        self.mounted = false;
    }

    /// What cuts the power, ready to do it at a word: nothing reaches the device from then on, not
    /// even the journal in memory (`EXT4_IOC_SHUTDOWN`, flag `EXT4_GOING_FLAGS_NOLOGFLUSH`).
    pub fn power_switch(&self, field: &Field) -> PowerSwitch {
        let script = "open(my $f, '<', $ARGV[0]) or die $!; my $flags = pack('L', 2); $| = 1; \
                      print \"ready\\n\"; <STDIN>; ioctl($f, 0x8004587D, $flags) or die $!";
        let mut command = command("perl", &["-e", script]);
        command.arg(&self.path);
        let mut process = Process::start("perl", command, &field.path("perl.log"));
        process.wait_for_line(SOON, |line| line == "ready");
        PowerSwitch(process)
    }

    /// An error of the file system, on which it makes itself read-only (`errors=remount-ro`).
    pub fn break_down(&self) {
        let mut find = command("findmnt", &["-n", "-o", "SOURCE", "-M"]);
        find.arg(&self.path);
        let (_, device, _) = run(find, SOON);
        let device = device.trim().rsplit('/').next().expect("a loop device");
        let trigger = format!("/sys/fs/ext4/{device}/trigger_fs_error");
        std::fs::write(&trigger, "a scenario").unwrap_or_else(|e| panic!("{trigger}: {e}"));
    }
}

impl PowerSwitch {
    /// Returns when the power is off.
    pub fn cut(mut self) {
        self.0.say("");
        let status = self.0.exit(SOON);
        assert!(status.success(), "EXT4_IOC_SHUTDOWN: {status}: {}", self.0.log());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily: a failed scenario may have left files open, and its processes end later.
            let _ = command("umount", &["--lazy"]).arg(&self.path).status();
        }
        if let Some(shelf) = &self.shelf {
            let _ = command("umount", &["--lazy"]).arg(shelf).status();
            let _ = std::fs::remove_file(shelf.with_extension(""));
        }
    }
}

/// See [`Mount::power_switch`].
pub struct PowerSwitch(Process);

/// A copy of a file, holes as holes.
pub fn copy(from: &Path, to: &Path) {
    succeed(command("cp", &["--sparse=always"]).arg(from).arg(to));
}

fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

fn command_on(program: &str, path: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg(path);
    command
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said} (mounting needs root and loop devices)");
}
