# One image for all processes; the command says which one runs. `docker compose up` uses it.

FROM python:3.12-slim AS build
WORKDIR /source
RUN python -m venv /opt/dispatchai
# A layer of its own for the dependencies, which change seldom.
COPY requirements.lock ./
RUN /opt/dispatchai/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY pyproject.toml LICENSE README.md topics.yaml ./
COPY schemas schemas
COPY agents agents
COPY dispatchai dispatchai
RUN /opt/dispatchai/bin/pip install --no-cache-dir --no-deps .

FROM python:3.12-slim
RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/dispatchai --create-home dispatchai
COPY --from=build /opt/dispatchai /opt/dispatchai
ENV PATH=/opt/dispatchai/bin:$PATH PYTHONUNBUFFERED=1 STATE_DIR=/var/lib/dispatchai
WORKDIR /var/lib/dispatchai
VOLUME /var/lib/dispatchai
USER dispatchai
ENTRYPOINT ["dispatchai"]
CMD ["--help"]
