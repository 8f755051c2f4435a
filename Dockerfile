# The image of the operator and of the shim that it puts into agents' pods: static binaries and nothing else, so there is
# no base image to fetch and no shell or library to keep patched. The build context is target/image (see the Makefile):
# the two binaries and the passwd file below, no sources.
FROM scratch

ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Lockstep" \
      org.opencontainers.image.description="Kubernetes operator of Lockstep, with its shim" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"

# One line, "lockstep:x:65532:65532:lockstep:/:/sbin/nologin": some tools look the user's name up.
COPY passwd /etc/passwd
COPY lockstep lockstep-shim /

# By number, not by name: with runAsNonRoot the kubelet can only check numbers.
USER 65532:65532
ENTRYPOINT ["/lockstep"]
