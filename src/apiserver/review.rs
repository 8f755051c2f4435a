//! Questions that store nothing: who holds a token, who asks, and who may do what.

use k8s_openapi::api::authentication::v1::{
    SelfSubjectReview, SelfSubjectReviewStatus, TokenReview, TokenReviewStatus, UserInfo,
};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SubjectAccessReview, SubjectAccessReviewStatus,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::access::Access;
use super::status::{Result, bad_request, no_such_path};

/// The answer to a review, which is the question with a status.
pub fn review(access: &dyn Access, user: &str, what: &str, asked: Value) -> Result<Value> {
    match what {
        "tokenreviews" => {
            let mut review: TokenReview = read(asked)?;
            review.status = Some(token(access, &review));
            write(&review)
        }
        "subjectaccessreviews" => {
            let mut review: SubjectAccessReview = read(asked)?;
            let who = review.spec.user.clone().unwrap_or_default();
            review.status = Some(allowed(access, &who, review.spec.resource_attributes.as_ref()));
            write(&review)
        }
        "selfsubjectaccessreviews" => {
            let mut review: SelfSubjectAccessReview = read(asked)?;
            review.status = Some(allowed(access, user, review.spec.resource_attributes.as_ref()));
            write(&review)
        }
        "selfsubjectreviews" => {
            let mut review: SelfSubjectReview = read(asked)?;
            let info = UserInfo { username: Some(user.to_owned()), ..UserInfo::default() };
            review.status = Some(SelfSubjectReviewStatus { user_info: Some(info) });
            write(&review)
        }
        _ => Err(no_such_path()),
    }
}

fn token(access: &dyn Access, review: &TokenReview) -> TokenReviewStatus {
    let audiences = review.spec.audiences.clone().unwrap_or_default();
    let known = access.authenticate(review.spec.token.as_deref().unwrap_or_default(), &audiences);
    let Some((user, audiences)) = known else {
        let error = Some("[invalid bearer token, token lookup failed]".to_owned());
        return TokenReviewStatus { user: Some(UserInfo::default()), error, ..TokenReviewStatus::default() };
    };
    TokenReviewStatus {
        authenticated: Some(true),
        audiences: Some(audiences),
        user: Some(user),
        ..TokenReviewStatus::default()
    }
}

fn allowed(access: &dyn Access, user: &str, wanted: Option<&ResourceAttributes>) -> SubjectAccessReviewStatus {
    let allowed = wanted.is_some_and(|wanted| access.authorize(user, wanted));
    SubjectAccessReviewStatus { allowed, ..SubjectAccessReviewStatus::default() }
}

fn read<T: DeserializeOwned>(asked: Value) -> Result<T> {
    serde_json::from_value(asked).map_err(|error| bad_request(&error.to_string()))
}

fn write(review: &impl Serialize) -> Result<Value> {
    serde_json::to_value(review).map_err(|error| bad_request(&error.to_string()))
}
