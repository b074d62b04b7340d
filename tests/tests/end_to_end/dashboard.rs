//! The dashboard, as a person's browser builds it: the numbers on the page are the numbers of the API.
