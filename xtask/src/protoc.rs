//! The compiler of protocol buffers, which etcd's driver calls when it is built.

use std::{env, ffi::OsString, path::PathBuf, process::Command};

use crate::Result;

/// What the builds look at.
const NAME: &str = "PROTOC";

/// Lets the command, and what it builds, find a `protoc`, unless somebody chose one already.
///
/// Ours is a dependency of this package, so that no build needs anything but Rust.
pub(crate) fn offer(command: &mut Command) {
    if let (None, Ok(path)) = (chosen(), bundled()) {
        command.env(NAME, path);
    }
}

/// The same as a line for a shell; nothing if there is nothing to say.
pub(crate) fn export() -> String {
    match (chosen(), bundled()) {
        (None, Ok(path)) => format!("export {NAME}='{}'\n", path.display()),
        _ => String::new(),
    }
}

fn chosen() -> Option<OsString> {
    env::var_os(NAME).filter(|value| !value.is_empty())
}

/// There is none for an exotic machine: there, the build says what it misses.
fn bundled() -> Result<PathBuf> {
    Ok(protoc_bin_vendored::protoc_bin_path()?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use distlock_servers::process::temp_dir;

    use super::*;
    use crate::run;

    #[test]
    fn ours_brings_the_common_definitions_along() {
        let dir = temp_dir("protoc").unwrap();
        let text = "syntax = \"proto3\"; import \"google/protobuf/descriptor.proto\";";
        fs::write(dir.join("it.proto"), text).unwrap();
        let mut command = Command::new(bundled().unwrap());
        command.args(["--proto_path=.", "--descriptor_set_out=out", "it.proto"]);
        let done = run::succeeds(command.current_dir(&dir));
        fs::remove_dir_all(&dir).unwrap();
        assert!(done);
    }
}
