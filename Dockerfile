# One image for all processes; the command says which one runs. `docker compose up` uses it.

# A tag can move: pin it by digest for production, see docs/deploy.md.
ARG PYTHON_IMAGE=python:3.12-slim

FROM ${PYTHON_IMAGE} AS build
WORKDIR /source
RUN python -m venv /opt/dispatchai && python -m venv /opt/build
# A layer of its own for the dependencies, which change seldom. What builds the wheel stays out of the image, and so does
# the embedded broker.
COPY requirements.lock requirements-build.lock ./
RUN /opt/dispatchai/bin/pip install --no-cache-dir --require-hashes -r requirements.lock \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements-build.lock
COPY pyproject.toml LICENSE README.md topics.yaml ./
COPY schemas schemas
COPY agents agents
COPY dispatchai dispatchai
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/dispatchai/bin/pip install --no-cache-dir --no-deps --no-index /wheels/*.whl

FROM ${PYTHON_IMAGE}
RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/dispatchai --create-home dispatchai
COPY --from=build /opt/dispatchai /opt/dispatchai
ENV PATH=/opt/dispatchai/bin:$PATH PYTHONUNBUFFERED=1 STATE_DIR=/var/lib/dispatchai
WORKDIR /var/lib/dispatchai
VOLUME /var/lib/dispatchai
USER dispatchai
ENTRYPOINT ["dispatchai"]
CMD ["--help"]
