# A Beam worker image: the package, its system libraries and Beam's entry point, for runners that start containers
# (--environment_type=DOCKER --environment_config=IMAGE). Also runs the commands: docker run --entrypoint pixelcli IMAGE --help
FROM apache/beam_python3.11_sdk:2.77.0 AS beam

FROM python:3.11-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE cli.py ./
COPY annotate annotate
COPY pixel160k pixel160k
COPY model model
COPY train train
COPY policies policies
COPY serve serve
COPY simulation simulation
COPY evaluation evaluation
# The default annotators are models, so torch belongs to it; the same image trains, and reads buckets.
RUN pip install --no-cache-dir --constraint constraints.txt '.[annotate,train,cloud]'
COPY --from=beam /opt/apache/beam /opt/apache/beam
# Beam's boot program starts a worker when a runner passes it worker options.
ENTRYPOINT ["/opt/apache/beam/boot"]
