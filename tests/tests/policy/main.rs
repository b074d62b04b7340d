//! What the workspace holds itself to: one version of what must be one, permissive licences, dependencies that point
//! one way, files a reader can hold in mind.

mod dependencies;
mod licence;
mod tidy;
