//! x
pub(super) fn demo(_for: Option<&str>) -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
