//! The compiler of protocol buffers, which etcd's driver calls when it is built: that of a crate, so that nobody has to install one.
//!
//! `protoc/run` starts it; `.cargo/config.toml` tells the builds of this repository of that script.

use std::{env, os::unix::process::CommandExt as _, process::Command};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let error =
        Command::new(protoc_bin_vendored::protoc_bin_path()?).args(env::args_os().skip(1)).exec();
    // It comes back only when it failed.
    Err(error.into())
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use distlock_servers::process::temp_dir;

    #[test]
    fn it_brings_the_common_definitions_along() {
        let dir = temp_dir("protoc").unwrap();
        let text = "syntax = \"proto3\"; import \"google/protobuf/descriptor.proto\";";
        fs::write(dir.join("it.proto"), text).unwrap();
        let mut command = Command::new(protoc_bin_vendored::protoc_bin_path().unwrap());
        command.args(["--proto_path=.", "--descriptor_set_out=out", "it.proto"]);
        let done = command.current_dir(&dir).status().is_ok_and(|status| status.success());
        fs::remove_dir_all(&dir).unwrap();
        assert!(done);
    }
}
